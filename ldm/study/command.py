"""How the command lines of studies end."""

import logging
import sys
from collections.abc import Callable

from ldm.errors import exit_status


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
