"""How far a study is, and how long it will still take."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ldm.study.runs import Outcome

log = logging.getLogger(__name__)


@contextmanager
def followed(title: str, total: int) -> Iterator[Callable[[Outcome], None]]:
    """Give `report(outcome)`, which says what became of a run and what time is left.

    A bar on a terminal, log lines everywhere.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )
    begun, done, worked = time.monotonic(), 0, 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, left="")

        def report(outcome: Outcome) -> None:
            nonlocal done, worked
            done, worked = done + 1, worked + (outcome.state != "kept")
            each = (time.monotonic() - begun) / max(worked, 1)
            left = (
                f"about {duration(each * (total - done))} left" if worked and done < total else ""
            )
            bar.update(task, completed=done, left=left)
            where = f"{outcome.task.folder.name}, {outcome.task.name}"
            log.info(
                "[%d of %d] %s: %s%s", done, total, where, _said(outcome), left and f"; {left}"
            )

        yield report


def _said(outcome: Outcome) -> str:
    if outcome.state == "kept":
        return "was complete"
    if outcome.state == "failed":
        lines = "".join(f"\n    {line}" for line in outcome.tail)
        return f"FAILED after {duration(outcome.seconds)}, see {outcome.task.log}{lines}\n   "
    return f"trained and measured in {duration(outcome.seconds)}"


def duration(seconds: float) -> str:
    """As people say it: 45 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
