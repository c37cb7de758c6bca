"""Measuring while training: it changes nothing, survives being stopped, and may end a run early."""

import csv
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

import main
from ldm.checkpoint import list_snapshots
from ldm.config import load_config
from ldm.errors import UserError
from ldm.evaluation import pictures
from ldm.run.measure import results
from ldm.run.measure.one_run import Measuring
from ldm.run.prepare import prepare
from ldm.training.samples import save_picture
from tests.training.test_resume_exactly import rows_of
from tests.workspace import Workspace, difference, evaluated

pytestmark = pytest.mark.usefixtures("empty_plots")

ON_THE_WAY: dict[str, object] = {
    "evaluation.every": 2,
    "evaluation.export": "false",
    "training.steps": 5,
    "training.save_every": 3,
    "training.learning_rate": 1e-2,
}


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    del place.settings["evaluation"]
    place.settings |= evaluated(tmp_path) | ON_THE_WAY
    return place


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text("utf-8"))


def measured_at(run: Path) -> list[int]:
    """The steps whose rows of metrics.csv have numbers of an evaluation."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows if row["evaluation/fidelity"]]


def evaluated_rows(run: Path) -> list[dict[str, str]]:
    return [row for row in rows_of(run) if row["step"] != "0"]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have evaluations say, from this step on, that no more is to be gained."""

    def should_stop(fidelity: str, snapshots: Any, choice: Any, patience: int) -> str | None:
        assert all(at % 2 == 0 for at in snapshots), "those measured at the end do not count"
        return "the test has seen enough" if max(snapshots) >= step else None

    monkeypatch.setattr(results, "should_stop", should_stop)


def drawn_by(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pictures for evaluations that are drawn from now on."""
    drawn: list[Path] = []

    def spy(picture: Any, path: Path, about: Any) -> None:
        drawn.append(path)
        save_picture(picture, path, about)

    monkeypatch.setattr(pictures, "save_picture", spy)
    return drawn


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_it_changes_nothing_and_is_not_done_twice(
    place: Workspace, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = drawn_by(monkeypatch)
    run = place.train("measured", training__optimizer=optimizer)
    names = [path.parents[1].name for path in drawn]
    assert all(names.count(f"step-00000{step}") == 12 for step in (1, 2, 3, 4, 5))
    assert names[-36:].count("step-000005") == 12, "what was not measured on the way is at the end"
    assert names.index("step-000002") < names.index("step-000004") < names.index("step-000001")
    assert measured_at(run) == [0, 1, 2, 3, 4, 5]
    plain = place.train("plain", evaluation__every="null", training__optimizer=optimizer)
    assert difference(run, plain, step=5) == 0
    assert result_of(run)["snapshots"] == result_of(plain)["snapshots"]
    for name in ("loss", "grad_norm"):
        ours, theirs = ([row[name] for row in evaluated_rows(each)] for each in (run, plain))
        assert ours == theirs


def test_results_are_there_on_the_way(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []
    over = results.why_early

    def look(run: Path, *arguments: Any) -> str:
        seen.append(([*result_of(run)["snapshots"]], (run / "report.html").exists()))
        return over(run, *arguments)

    monkeypatch.setattr("ldm.run.measure.one_run.why_early", look)
    place.train("looked")
    assert seen == [(["2"], True), (["2", "4"], True)]


def test_without_final_no_more_is_measured(place: Workspace) -> None:
    run = place.train("little", evaluation__final="false")
    assert measured_at(run) == [0, 2, 4]
    assert list(result_of(run)["snapshots"]) == ["2", "4"]
    assert main.main(["--resume", str(run)]) == 0
    assert list(result_of(run)["snapshots"]) == ["2", "4"]


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_stopped_while_measuring_it_goes_on_there(
    place: Workspace,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place.settings["training.optimizer"] = optimizer
    whole, drawn = place.train("whole"), []

    def interrupt(picture: Any, path: Path, about: Any) -> None:
        save_picture(picture, path, about)
        drawn.append(path)
        if len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(pictures, "save_picture", interrupt)
        run = place.train("stopped")
    assert "stopped after step 2; go on with" in caplog.text
    assert not (run / "evaluation.json").exists() and measured_at(run) == []
    assert main.main(["--resume", str(run)]) == 0
    assert difference(run, whole, step=5) == 0
    assert rows_of(run) == rows_of(whole)
    assert result_of(run)["snapshots"] == result_of(whole)["snapshots"]
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5], "none forgotten"
    measured = {event.step for event in events.Scalars("evaluation/subject/identity")}
    assert measured == {0, 1, 2, 3, 4, 5}


def test_what_fails_costs_the_numbers_of_a_step(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw, calls = pictures.draw, []

    def fail_once(folder: Path, *arguments: Any, **more: Any) -> Any:
        calls.append(folder)
        if folder.name == "step-000002" and calls.count(folder) == 1:
            raise RuntimeError("a cosmic ray")
        return draw(folder, *arguments, **more)

    monkeypatch.setattr("ldm.run.measure.evaluator.draw", fail_once)
    run = place.train("ray")
    assert "step 2 is not measured, training goes on: a cosmic ray" in caplog.text
    assert measured_at(run) == [0, 1, 2, 3, 4, 5], "at the end it is"


def test_a_step_whose_snapshot_is_gone_keeps_its_numbers(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    run = place.train("pruned", snapshots__keep=1, evaluation__every=1)
    assert 1 not in list_snapshots(run / "snapshots")
    settings = load_config([run / "config.yaml"], [])
    measuring = Measuring(settings, prepare(settings, to_train=False), run)
    row, curves = measuring.while_training(torch.device("cpu"), 1)
    assert row["evaluation/fidelity"] == curves["subject/fidelity/oracle"]
    assert curves == {
        metric: one["value"] for metric, one in result_of(run)["snapshots"]["1"].items()
    }
    shutil.rmtree(run / "evaluation" / "step-000001")
    with pytest.raises(UserError, match=r"step 1 is no longer there \(snapshots.keep=1\)"):
        measuring.while_training(torch.device("cpu"), 1)


# --- ending early


def test_a_run_ends_early_and_says_why(
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(4, monkeypatch)
    place.settings |= {"evaluation.patience": 1, "training.steps": 9}
    with caplog.at_level(logging.INFO):
        run = place.train("early")
    assert "training ends early, after step 4: the test has seen enough" in caplog.text
    assert "go on with" not in caplog.text, "it was not interrupted"
    assert list(list_snapshots(run / "snapshots")) == [1, 2, 3, 4]
    assert list(result_of(run)["snapshots"]) == ["1", "2", "3", "4"]
    assert (run / "report.html").exists()
    capsys.readouterr()
    assert main.main(["--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "ended early, after step 4 of 9: the test has seen enough" in said
    assert f"python main.py --resume {run} evaluation.patience=null" in said
    for lost in ("evaluation.json", "report.html", "snapshots/step-000004/unet.safetensors"):
        (run / lost).unlink()
        assert main.main(["--resume", str(run)]) == 0
        assert (run / lost).exists() and max(list_snapshots(run / "snapshots")) == 4
    assert main.main(["--resume", str(run), "evaluation.patience=null"]) == 0
    assert max(list_snapshots(run / "snapshots")) == 9
    plain = place.train("plain", evaluation__patience="null", evaluation__every="null")
    assert difference(run, plain, step=9) == 0


@pytest.mark.parametrize("saved", [3, 4])
def test_killed_before_its_end_it_ends_at_the_same_step(
    place: Workspace, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """saved=3: before the evaluation that says so; 4: while that was made."""
    stop_after(4, monkeypatch)
    place.settings |= {"evaluation.patience": 1, "training.steps": 9, "training.save_every": saved}
    run = place.train("killed")
    if saved == 3:
        shutil.copy(run / "resume.previous.ckpt", run / "resume.ckpt")
    for name in ("scores.json", "pictures.csv"):
        (run / "evaluation/step-000004" / name).unlink()
    if saved == 4:
        (run / "evaluation.json").unlink()
    assert main.main(["--resume", str(run)]) == 0
    assert not (run / "evaluation.previous.json").exists(), "it was not of an end"
    assert max(list_snapshots(run / "snapshots")) == 4
    assert [row["step"] for row in rows_of(run)] == list("01234")


# --- room on the disk


def test_pictures_go_with_their_snapshots_and_numbers_stay(place: Workspace) -> None:
    run = place.train("pruned", snapshots__keep=1)
    kept = list_snapshots(run / "snapshots")
    assert {5} <= kept.keys() < {2, 4, 5}, "the newest, and what was chosen on the way"
    folders = {int(path.name[5:]): path for path in (run / "evaluation").glob("step-*")}
    assert folders.keys() == {2, 4, 5}
    for step, folder in folders.items():
        assert (folder / "scores.json").exists()
        assert bool(list(folder.rglob("*.png"))) == (step in kept)
    result = result_of(run)
    assert list(result["snapshots"]) == ["2", "4", "5"], "the curve is whole"
    assert {int(step) for step in result["gates"]} == kept.keys(), "these can be chosen"
