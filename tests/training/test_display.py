"""The one display of a run: bars and notes on a terminal, log lines anywhere else."""

import io
import logging
import sys

import pytest
from rich.console import Console

from ldm.run.progress import Work, counted
from ldm.training.display import Bar, Display, clock
from ldm.training.steps import is_due, times_due


def terminal() -> tuple[Display, io.StringIO]:
    stream = io.StringIO()
    return Display(Console(file=stream, force_terminal=True, width=160)), stream


def test_bars_and_notes_share_one_place() -> None:
    display, stream = terminal()
    with display.bar("step", 9, 2) as outer:
        outer.update(3, 9, 60.0, 600.0, "loss 0.1")
        display.note("newest grid", "samples/step-000003.png")
        with display.bar("drawn") as inner:
            inner.update(1, 4)
            bars = display.bars
            assert bars is not None and len(bars.tasks) == 2
            bars.refresh()
        assert len(bars.tasks) == 1 and not bars.finished
    assert not bars.live.is_started
    shown = stream.getvalue()
    for words in ("3/9", "loss 0.1", "0:01:00 left", "about 10 min to the end of the run", "1/4"):
        assert words in shown
    assert "newest grid: samples/step-000003.png" in shown


def test_log_lines_go_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written past it they would stand in the middle of the bar."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        with Display(Console(stderr=True, force_terminal=True, width=80)).bar("step", 9):
            assert handler.stream is sys.stderr is not stream
            logging.getLogger("ldm").warning("a word")
        assert handler.stream is stream is sys.stderr
    finally:
        logging.getLogger().removeHandler(handler)
    assert "a word\n" in stream.getvalue()


def test_anywhere_else_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display(Console(file=io.StringIO()))
    caplog.set_level(logging.INFO)
    with counted("made", display=display, watch=lambda work: 600.0) as report:
        for done in range(1, 5):
            report(done, 4)
        assert caplog.messages == ["made 4/4"]
        monkeypatch.setattr(Bar, "SECONDS_BETWEEN_LINES", 0.0)
        report(2, 4)
    assert caplog.messages[1].startswith("made 2/4, 0:00:0")
    assert caplog.messages[1].endswith("left, about 10 min to the end of the run")


def test_work_made_at_once_is_reported_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ldm.run.progress.time.perf_counter", lambda: now)
    work = Work("drawn", "", batch=4)
    now = 108.0
    work.report(11, 20)  # ten were there; the first of four that took 8 seconds
    assert (work.each, work.left, work.new) == (2.0, 18.0, 1)
    for done in (12, 13, 14):
        work.report(done, 20)
    assert (work.each, work.left) == (2.0, 12.0)
    now = 120.0
    work.report(20, 20)
    assert (work.each, work.left, work.new) == (2.0, 0.0, 6)


def test_how_often_something_is_due() -> None:
    class Trainer:
        max_steps = 23

    for every in (0, 1, 4, 23, 50):
        for first in (0, 4, 22, 23):
            counted = sum(is_due(step, every, Trainer) for step in range(first + 1, 24))  # type: ignore[arg-type]
            assert times_due(first, 23, every) == counted, (every, first)


def test_lengths_of_time() -> None:
    told = [clock(seconds) for seconds in (0.4, 89, 90, 5399, 5400)]
    assert told == [
        "0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]
