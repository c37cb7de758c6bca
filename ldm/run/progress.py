"""How far something is that counts pictures."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from ldm.training.display import Bar, Display

log = logging.getLogger(__name__)

CLASS_IMAGES, DRAWING, MEASURING = "class images", "drawing", "measuring"  # kinds of work


class Work:
    """Something at hand that counts pictures. kind: of work that a run may have more of, or ""."""

    def __init__(self, title: str, kind: str, batch: int) -> None:
        self.title, self.kind, self.batch = title, kind, batch
        self.done = self.total = 0
        self.new = 0  # done since the last report
        self.each: float | None = None  # seconds
        self._began = time.perf_counter()
        self._before: int | None = None  # were done when it began

    def report(self, done: int, total: int) -> None:
        """Note that so many are done; those made at once (`batch`) are reported one by one."""
        if self._before is None:
            none = self.kind in (CLASS_IMAGES, MEASURING)  # those that were there are not reported
            self._before = self.done = 0 if none else max(0, done - 1)
        self.new, self.done, self.total = max(0, done - self.done), done, total
        made = done - self._before
        if made > 0:
            made = min(total - self._before, -(-made // self.batch) * self.batch)
            self.each = (time.perf_counter() - self._began) / made

    @property
    def left(self) -> float | None:
        """Seconds until all are done."""
        return None if self.each is None else self.each * (self.total - self.done)


class Counted(Protocol):
    """`counted`, or what a run has in its place."""

    def __call__(
        self, title: str, check: Callable[[], None] = ..., kind: str = ..., batch: int = ...
    ) -> AbstractContextManager[Callable[[int, int], None]]: ...


@contextmanager
def counted(
    title: str,
    check: Callable[[], None] = lambda: None,
    kind: str = "",
    batch: int = 1,
    display: Display | None = None,
    watch: Callable[[Work], float | None] = lambda work: None,
) -> Iterator[Callable[[int, int], None]]:
    """Give `report(done, total)`: a bar of `display` on a terminal, else a log line now and then.

    `check` is called at each report; what it raises stops the counting. kind, batch: see `Work`.
    watch: told of it at each report, gives the seconds to the end of the run (None: not known).
    """
    with (display or Display()).bar(title) as bar:
        work = Work(title, kind, batch)

        def report(done: int, total: int) -> None:
            check()
            work.report(done, total)
            bar.update(done, total, work.left, watch(work))

        yield report


def logged(title: str) -> Callable[[int, int], None]:
    """Give `report(done, total)` that says now and then, and at the end, how many are done."""
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > Bar.SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%s: %d of %d", title, done, total)

    return report
