"""A run that is under way: its page, what its terminal says, and what its loggers get."""

import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

import main
from ldm.evaluation.measured import read_measured
from ldm.evaluation.report import Status, write_live
from ldm.evaluation.report.html import page as page_of
from ldm.evaluation.rows import places_of
from ldm.run.live.showing import Live
from ldm.run.progress import DRAWING, MEASURING
from tests.evaluation.test_report import Page, read_page
from tests.workspace import Workspace, evaluated

pytestmark = pytest.mark.usefixtures("empty_plots")
ON_THE_WAY: dict[str, object] = {
    "evaluation.every": 2,
    "training.steps": 4,
    "training.save_every": 3,
    "samples.every": 2,
    "samples.count": 1,
}


@dataclass
class Shown:
    """Every page that a run has written before its report."""

    run: Path
    pages: list[Page] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    left: list[dict[str, float | None]] = field(default_factory=list)  # seconds, by part
    live: Live | None = None

    def first(self, words: str) -> Page:
        """The first page that says so."""
        return next(page for page in self.pages if words in page.text)


def collect(shown: Shown, patch: pytest.MonkeyPatch) -> None:
    """Have every page read when it is written, and none left out."""
    write, status_of = write_live, Live._status

    def write_and_read(run: Path, status: Status) -> Path:
        path = write(run, status)
        shown.pages.append(read_page(path))
        shown.statuses.append(status)
        return path

    def note(self: Live, going: bool) -> Status:
        shown.live = self
        shown.left.append(self.left())
        return status_of(self, going)

    patch.setattr(Live, "SHARE", 1e9)
    patch.setattr("ldm.run.live.showing.write_live", write_and_read)
    patch.setattr(Live, "_status", note)


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Iterator[Shown]:
    """A run that was measured on the way; not to be changed."""
    folder = tmp_path_factory.mktemp("shown")
    place = Workspace(folder, tiny_base_folder("eps"))
    del place.settings["evaluation"]
    place.settings |= evaluated(folder) | ON_THE_WAY
    shown = Shown(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.evaluation.report.plots.svg", lambda plot, title: "<svg></svg>")
        collect(shown, patch)
        shown.run = place.train("shown", training__learning_rate=1e-2)
    yield shown


def refreshes(page: Page) -> list[str | None]:
    return [about["content"] for tag, about in page.tags if about.get("http-equiv") == "refresh"]


def test_a_page_is_there_from_the_start_on(shown: Shown) -> None:
    early = shown.first("Training: step 0 of 4")
    assert early is not shown.pages[0], "the first is of what comes before training"
    assert all(refreshes(page) == ["30"] for page in shown.pages)
    assert "none yet: a run that is killed now starts over" in early.text
    assert f"python main.py --resume {shown.run}" in early.text and "written" in early.text
    assert "untouched base" in early.text, "the grid of step 0"
    later = shown.first("Training: step 4 of 4")
    assert "after step 4, at" in later.text and "newest loss" in later.text
    sources = [about.get("src") or "" for tag, about in later.tags if tag == "img"]
    assert len(sources) >= 6 and all(one.startswith("data:image/") for one in sources)
    steps = [status.doing.split(" of ")[0] for status in shown.statuses]
    assert "Training: step 3" in steps, "saved there"


def test_time_left_is_told_by_part(shown: Shown) -> None:
    early, later = (
        next(n for n, one in enumerate(shown.statuses) if f"step {step} of 4" in one.doing)
        for step in (0, 4)
    )
    assert shown.left[early].keys() == {"training", "evaluation"}, "no class image, no snapshot"
    assert all(seconds and seconds > 0 for seconds in shown.left[early].values())
    assert "training" not in shown.left[later] and "evaluation" in shown.left[later]
    assert "to the end." in shown.pages[early].text
    assert all(status.share is None or 0 < status.share < 1 for status in shown.statuses)
    assert shown.live is not None
    ahead = shown.live.ahead
    assert ahead.seconds(DRAWING) == ahead.seconds(MEASURING) == 0, "all were counted"


def test_newest_metrics_stand_beside_the_bases(shown: Shown) -> None:
    result = json.loads((shown.run / "evaluation.json").read_text())
    page = shown.first("Measured so far: step 2")
    measured = {
        (cell.attributes["data-metric"], cell.attributes["data-column"]): cell.attributes
        for cell in page.cells
        if "data-metric" in cell.attributes
    }
    for column, scores in (("base", result["base"]), ("2", result["snapshots"]["2"])):
        found = measured["subject/fidelity/oracle", column]["data-value"]
        assert float(found or "nan") == scores["subject/fidelity/oracle"]["value"]
    assert "Measured so far: step 4" in shown.pages[-1].text


def test_the_report_takes_its_place(shown: Shown) -> None:
    page = read_page(shown.run / "report.html")
    assert refreshes(page) == [] and not any(tag == "progress" for tag, _ in page.tags)
    assert "--resume" not in page.text and (shown.run / "report.png").exists()


def test_without_evaluation_too(place: Workspace) -> None:
    run = place.train("plain")
    page = read_page(run / "report.html")
    assert refreshes(page) == [] and "Training is at step 2 of 2" in page.text
    (run / "report.png").unlink()  # killed before the report was whole
    assert main.main(["--resume", str(run)]) == 0
    assert (run / "report.png").exists()


def test_it_takes_no_more_than_its_share(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(place.logs)
    collect(shown, monkeypatch)
    monkeypatch.setattr(Live, "SHARE", 1e-9)
    place.train("rare", training__steps=4, samples__every=1, samples__count=1)
    assert len(shown.pages) == 1


def test_a_page_that_cannot_be_written_costs_a_warning(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: Path, status: Status) -> Path:
        raise OSError("no room")

    monkeypatch.setattr("ldm.run.live.showing.write_live", fail)
    monkeypatch.setattr(Live, "SHARE", 1e9)
    run = place.train("poor")
    assert caplog.text.count("the run goes on: OSError: no room") == 1
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    "broken", ["live.showing.headline", "live.loggers.flat"], ids=["a note", "what the loggers get"]
)
def test_what_cannot_be_shown_or_logged_costs_a_warning(
    place: Workspace, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(f"ldm.run.{broken}", fail)
        run = place.train("poorer")
    assert "OSError: no room" in caplog.text
    page = read_page(run / "report.html")
    assert refreshes(page) == [] and "Training is at step 2 of 2" in page.text


@pytest.mark.parametrize(
    ("part", "told"),
    [("picture.sheet", "Training is at step 2"), ("html.page", "its report could not be written")],
)
def test_a_report_that_cannot_be_written_leaves_a_finished_page(
    place: Workspace, part: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any, status: Status | None = None) -> str:
        if status is None:
            raise OSError("no room")
        return page_of(run, status)

    monkeypatch.setattr(f"ldm.evaluation.report.{part}", fail)
    page = read_page(place.train("poorest") / "report.html")
    assert refreshes(page) == [] and told in page.text and "Stopped" not in page.text


@pytest.mark.parametrize("by", ["signal", "error"])
def test_what_stopped_says_so_and_goes_on(
    place: Workspace, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step = Live.on_step

    def end(self: Live, trainer: Any, module: Any, step: int) -> None:
        on_step(self, trainer, module, step)
        if step == 2 and by == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == 2:
            raise RuntimeError("a cosmic ray")

    with monkeypatch.context() as patch:
        patch.setattr(Live, "on_step", end)
        error = pytest.raises(RuntimeError, match="a cosmic ray")
        with error if by == "error" else contextlib.nullcontext():
            assert place.main("--name", "stopped", training__steps=4) == 0
    (run,) = place.logs.glob("*_stopped")
    page = read_page(run / "report.html")
    assert refreshes(page) == [] and f"python main.py --resume {run}" in page.text
    words = "before its end (after step 3 of 4)" if by == "signal" else "by an error: a cosmic ray"
    assert f"Stopped {words}" in page.text and not (run / "report.png").exists()
    assert main.main(["--resume", str(run)]) == 0
    assert "Stopped" not in read_page(run / "report.html").text


def test_log_lines_where_there_is_no_terminal(
    place: Workspace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.training.display.Bar.SECONDS_BETWEEN_LINES", 0.0)
    del place.settings["evaluation"]
    place.settings |= evaluated(place.folder) | ON_THE_WAY
    with caplog.at_level(logging.INFO):
        run = place.train("told")
    assert "class images made 1/3" in caplog.text
    assert f"newest grid: {run}/samples/step-000002.png" in caplog.text
    assert "measured: step 2: recognised as the subject" in caplog.text and "(base " in caplog.text
    (line,) = [line for line in caplog.messages if line.startswith("step 3/4")]
    assert "instance" in line and " left, about " in line and "to the end of the run" in line


# --- TensorBoard


@pytest.fixture(scope="module")
def events(shown: Shown) -> EventAccumulator:
    return EventAccumulator(str(shown.run), size_guidance={"tensors": 0}).Reload()


def test_texts_reach_tensorboard(shown: Shown, events: EventAccumulator) -> None:
    texts = {
        name: tensor_util.make_ndarray(events.Tensors(f"{name}/text_summary")[0].tensor_proto)
        for name in ("config", "prompts")
    }
    config = texts["config"].item().decode()
    assert "    training:\n" in config and "      steps: 4\n" in config
    assert "- samples: a drawing of sks robot in the snow" in texts["prompts"].item().decode()


def test_settings_stand_beside_final_metrics(shown: Shown, events: EventAccumulator) -> None:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["training.steps"].number_value == 4
    assert told["training.optimizer"].string_value == "adamw"
    assert told["evaluation.export"].number_value == 1
    result = json.loads((shown.run / "evaluation.json").read_text())
    last = result["snapshots"][str(result["chosen"] or 4)]
    (event,) = events.Scalars("final/subject/fidelity/oracle")
    assert event.value == pytest.approx(last["subject/fidelity/oracle"]["value"])
    assert event.step == 4 and events.Scalars("final/loss/instance")
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    named = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert "final/subject/fidelity/oracle" in {one.name.tag for one in named}


def test_precision_and_recall_of_likeness(shown: Shown, events: EventAccumulator) -> None:
    """At any threshold they are those counted from the pictures' own numbers."""
    curves = events.Tensors("evaluation/subject_told_from_class/oracle")
    assert [curve.step for curve in curves] == [0, 1, 2, 3, 4]
    rows = read_measured(shown.run / "evaluation/step-000004").rows
    subject = [rows[n]["fidelity/oracle"] for n in places_of(rows, "subject", "reporting")]
    plain = [rows[n]["pres/oracle"] for n in places_of(rows, "class", "reporting")]
    true, false, _, missed, precision, recall = tensor_util.make_ndarray(curves[4].tensor_proto)
    thresholds = np.linspace(0, 1, len(true))
    for place in (0, 60, 120, 124, 126):  # TensorBoard sorts scores into as many bins
        kept = [np.floor(np.array(s) * (len(true) - 1)) >= place for s in (subject, plain)]
        assert (true[place], false[place]) == (kept[0].sum(), kept[1].sum()), thresholds[place]
        assert missed[place] == len(subject) - kept[0].sum()
    assert precision[0] == pytest.approx(len(subject) / (len(subject) + len(plain)))
    assert recall[0] == 1


def test_a_resumed_run_forgets_no_curve(place: Workspace) -> None:
    run = place.train("twice")
    shutil.rmtree(run / "samples", ignore_errors=True)
    assert main.main(["--resume", str(run), "training.steps=4"]) == 0
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("final/loss")] == [2, 4]
