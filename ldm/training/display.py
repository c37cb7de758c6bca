"""What a terminal shows of a run while it works; anywhere else, a log line now and then."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)


def clock(seconds: float) -> str:
    """A length of time as people say it: "80 s", "12 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Bar:
    """One line of a display: how far something is that counts to `total`."""

    SECONDS_BETWEEN_LINES = 20.0

    def __init__(self, display: "Display", title: str, total: int | None, done: int) -> None:
        self.display, self.title = display, title
        self.last: tuple[int, int, str] | None = None  # done, in all, words
        self._told = time.monotonic()
        self.task: TaskID | None = None
        if display.bars is not None:
            self.task = display.bars.add_task(title, total=total, completed=done, words="", left="")

    def update(
        self,
        done: int,
        total: int,
        left: float | None = None,
        whole: float | None = None,
        words: str = "",
    ) -> None:
        """Show it. left, whole: seconds to the end of this, and to that of the run (None: not
        known). Elsewhere than on a terminal one line in SECONDS_BETWEEN_LINES, and the last."""
        self.last = (done, total, words)
        if (bars := self.display.bars) is not None and self.task is not None:
            own = _left(left, None)
            bars.update(self.task, completed=done, total=total, words=words, left=own)
            if whole is not None:
                bars.whole = _left(None, whole)
        elif done == total or time.monotonic() - self._told > self.SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self.tell(done, total, left, whole, words)

    def tell(
        self, done: int, total: int, left: float | None, whole: float | None, words: str
    ) -> None:
        """The same as a log line."""
        times = "" if done == total else _left(left, whole)
        parts = [f"{self.title} {done}/{total}", words, times]
        log.info("%s", ", ".join(part for part in parts if part))


def _left(left: float | None, whole: float | None) -> str:
    parts = []
    if left is not None:
        parts.append(f"{timedelta(seconds=round(left))} left")
    if whole is not None:
        parts.append(f"about {clock(whole)} to the end of the run")
    return ", ".join(parts)


class Display:
    """All that a run shows while it works: a bar for each thing at hand, and notes below them.

    On a terminal (`console`, default: standard error) in one place that is drawn anew; log lines
    go above it. Anywhere else as log lines.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bars: _Bars | None = None  # while something is at hand, on a terminal
        self._notes: dict[str, str] = {}
        self._open = 0

    @contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
        """Inside, a bar; within another one's, below it."""
        if self.console.is_terminal and self.bars is None:
            self.bars = _Bars(self._notes, self.console)
            self.bars.start()
            _log_to(sys.stderr)
        self._open += 1
        bar = Bar(self, title, total, done)
        try:
            yield bar
        finally:
            self._open -= 1
            if self.bars is not None and bar.task is not None:
                self.bars.refresh()  # its last state is seen, however quick it was
                self.bars.remove_task(bar.task)
                if self._open == 0:
                    bars, self.bars = self.bars, None
                    bars.stop()
                    _log_to(sys.stderr)
                if bar.last:  # what stays of it
                    done, total, words = bar.last
                    bar.tell(done, total, None, None, words)

    def note(self, name: str, text: str) -> None:
        """Say, and on a terminal keep showing, what is newest of its name."""
        if self._notes.get(name) == text:
            return
        self._notes[name] = text
        if not self.console.is_terminal:
            log.info("%s: %s", name, text)


class _Bars(Progress):
    """Bars with the time left in all and notes below them; nothing of it stays."""

    def __init__(self, notes: dict[str, str], console: Console) -> None:
        self.notes = notes
        self.whole = ""
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        notes = [f"{name}: {text}" for name, text in self.notes.items()]
        for line in [self.whole, *notes] if self.whole else notes:
            yield Text(line, no_wrap=True, overflow="ellipsis")


def _log_to(stream: TextIO) -> None:
    """Have log lines go where standard error now does: a live display puts them above itself."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and _behind(handler.stream) is _behind(stream):
            handler.setStream(stream)


def _behind(stream: TextIO) -> TextIO:
    """The file that a live display stands before."""
    return getattr(stream, "rich_proxied_file", stream)
