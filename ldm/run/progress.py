"""How far something is that counts pictures."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


@contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give `report(done, total)`: a bar on a terminal, else one log line when all are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: log.info("%s: %d", title, total) if done == total else None
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
