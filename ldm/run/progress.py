"""How far something is that counts pictures."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20


@contextmanager
def counted(
    title: str, check: Callable[[], None] = lambda: None
) -> Iterator[Callable[[int, int], None]]:
    """Give `report(done, total)`: a bar on a terminal, else one log line when all are done.

    `check` is called at each report; what it raises stops the counting.
    """
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title)

        def report(done: int, total: int) -> None:
            check()
            bar.update(task, completed=done, total=total)
            if done == total and not console.is_terminal:
                log.info("%s: %d", title, total)

        yield report


def logged(title: str) -> Callable[[int, int], None]:
    """Give `report(done, total)` that says now and then, and at the end, how many are done."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%s: %d of %d", title, done, total)

    return report
