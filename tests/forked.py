"""Work in processes of its own, forked from one that has imported everything and done nothing.

Importing the libraries takes a process seconds, training a tiny model does not.
"""

import contextlib
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SECONDS = 300  # in which everything has to end
IMPORTED = ["pytest", "main", "tests.training.job", "ldm.run.build", "ldm.run.finish"]


@dataclass
class Ended:
    """The first status that is not 0 (negative: a signal), and what all processes wrote."""

    returncode: int
    stdout: str
    stderr: str


def forked(
    work: Callable[..., object], *arguments: Any, told: Sequence[Mapping[str, str]] = ({},)
) -> Ended:
    """Call `work(*arguments)`, to its end, in one process for each environment in `told`.

    `work` has to be importable; what it returns, if it is a number, is the exit status.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:
        places = [Path(folder, str(number)) for number in range(len(told))]
        processes = [
            started.enter_context(running(place, work, *arguments, told=environment))
            for place, environment in zip(places, told, strict=True)
        ]
        for process in processes:
            process.join(SECONDS)
        said = ["".join(p.with_suffix(end).read_text() for p in places) for end in (".out", ".err")]
        statuses = [process.exitcode for process in processes]
        assert None not in statuses, f"{work.__name__} hangs: {said}"
    return Ended(next((status for status in statuses if status), 0), *said)


@contextlib.contextmanager
def running(
    place: Path, work: Callable[..., object], *arguments: Any, told: Mapping[str, str]
) -> Iterator[BaseProcess]:
    """A process at work that writes to `place`.out and .err; killed if it still is at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_child, args=(place, told, work, arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _child(
    place: Path, told: Mapping[str, str], work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    import torch

    for suffix, stream in ((".out", 1), (".err", 2)):
        os.dup2(os.open(place.with_suffix(suffix), os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
    os.environ.update(told)
    torch.set_num_threads(1)
    if status := work(*arguments):
        raise SystemExit(status)


def ranks(count: int) -> list[dict[str, str]]:
    """What processes of one machine that train together are told by who starts them."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [{**meeting, "NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(count)]
