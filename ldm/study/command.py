"""What the command lines of studies share; loads nothing that takes long."""

import logging
import sys
from collections.abc import Callable, Sequence

from ldm.errors import exit_status

EXECUTORS = ("loop", "local", "slurm")  # see `spread`


def names_and_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part what stands after an option for names: a key=value there belongs to the configuration.

    >>> names_and_settings(["robot_mint", "training.steps=200"])
    (['robot_mint'], ['training.steps=200'])
    """
    settings = [word for word in words if "=" in word]
    return [word for word in words if word not in settings], settings


def finish(work: Callable[[], bool]) -> int:
    """Exit status of a study: 0, 1 where `work` says that not all is well, 2 for wrong input.

    130 where it was interrupted (128 + SIGINT, as a shell counts).
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    good: list[bool] = []
    try:
        return exit_status(lambda: good.append(work())) or int(not good[0])
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
