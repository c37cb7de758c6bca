"""The end of a run: numbers beside the untouched base, a choice, an export, a report."""

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
from PIL import Image

import main
from ldm.checkpoint import find_snapshot
from ldm.evaluation import pictures
from ldm.evaluation.oracle import Reading
from ldm.evaluation.select import Choice
from ldm.models.base import load_base
from ldm.run import finish
from ldm.run.measure import one_run, results
from ldm.sampling.metadata import read_settings
from ldm.training import DreamBoothModule
from ldm.training.samples import save_picture
from tests.evaluation.fake import BrightnessOracle
from tests.workspace import Workspace, evaluated, weights

pytestmark = pytest.mark.usefixtures("empty_plots")

Folder = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Folder) -> Workspace:
    return small(tmp_path, tiny_base_folder("v"))


def small(folder: Path, base: Path) -> Workspace:
    place = Workspace(folder, base)
    del place.settings["evaluation"]
    place.settings |= evaluated(folder) | {"samples.every": 2, "samples.count": 1}
    return place


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text("utf-8"))


def rows_of(run: Path) -> dict[str, dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row for row in csv.DictReader(file)}


def choose(step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this snapshot chosen, whatever the numbers are."""

    def select(fidelity: str, *_: object) -> Choice:
        return Choice(fidelity, step, ["so the test wants it"], {1: [], 2: []})

    monkeypatch.setattr(results, "select", select)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Folder) -> Path:
    """A run of two steps that was evaluated; for tests that leave it as it is."""
    place = small(tmp_path_factory.mktemp("whole"), tiny_base_folder("v"))
    return place.train("whole", training__learning_rate=1e-2)


def test_numbers_stand_beside_the_base(whole: Path) -> None:
    result = result_of(whole)
    metrics = {"subject/identity", "subject/fidelity/oracle", "subject/prompt/oracle"}
    metrics |= {"class/identity", "class/diversity/oracle", "loss/subject", "loss/class"}
    assert metrics < result["base"].keys() < result["snapshots"]["1"].keys()
    beside = {"class/drift/oracle", "class/kid/oracle", "class/change/light"}
    assert beside < result["snapshots"]["2"].keys()
    measured = [result["base"], *result["snapshots"].values()]
    losses = [scores["loss/subject"]["value"] for scores in measured]
    assert len(set(losses)) == 3, "each has weights of its own"
    assert all(s["low"] <= s["value"] <= s["high"] for scores in measured for s in scores.values())
    prompts = [result[half]["prompts"] for half in ("choosing", "reporting")]
    assert prompts == [["a drawing of sks robot"], ["a drawing of sks robot in the snow"]]
    assert result["floor"].keys() == {"class/kid/oracle", "class/change/light"}
    assert result["references"] == {"heldout": 0, "training": 3, "compared_with": "training"}
    assert result["images"] == {"subject": 4, "class": 6, "unrelated": 2}
    assert result["sampling"]["steps"] == 2 and result["precision"] == "fp32"
    assert set(result["gates"]) == {"1", "2"} and result["verdict"] and result["reasons"]


def test_metrics_csv_and_curves_have_a_line_per_evaluated_step(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    result, rows = result_of(whole), rows_of(whole)
    assert list(rows) == ["0", "1", "2"]
    assert rows["0"]["loss"] == "" and float(rows["2"]["loss"]) > 0
    for step, scores in {"0": result["base"], **result["snapshots"]}.items():
        for column, metric in {
            "evaluation/fidelity": "subject/fidelity/oracle",
            "evaluation/prompt": "subject/prompt/oracle",
            "evaluation/diversity": "subject/diversity/oracle",
            "evaluation/identity": "subject/identity",
        }.items():
            assert float(rows[step][column]) == scores[metric]["value"]
    drift = [rows[step]["evaluation/drift"] for step in rows]
    assert (
        drift[0] == ""
        and float(drift[1]) == result["snapshots"]["1"]["class/drift/oracle"]["value"]
    )
    events = EventAccumulator(str(whole)).Reload()
    curve = events.Scalars("evaluation/subject/fidelity/oracle")
    assert [event.step for event in curve] == [0, 1, 2]
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_a_run_can_be_measured_again_from_its_own_folder(whole: Path) -> None:
    base, step = whole / "evaluation" / "base", whole / "evaluation" / "step-000002"
    for folder in (base, step):
        asked = pictures.read_asked(folder)
        assert all((folder / name).is_file() for name in pictures.files_of(asked))
        assert (folder / "scores.json").is_file() and (folder / "pictures.csv").is_file()
    (root,) = (path for path in (whole.parents[1] / "bases").iterdir() if path.is_dir())
    assert (root / "subject/000.png").samefile(base / "subject/000.png"), "linked, not copied"
    about = read_settings(step / "class/0003.png")
    assert about["model"] == f"{whole.name} step-000002" and about["steps"] == 2
    about = read_settings(base / "class/0003.png")
    assert whole.name not in about["model"], "the base's are shared by runs"
    assert (whole / "report.html").stat().st_size > 1000
    with Image.open(whole / "report.png") as report:
        assert report.width > 100


def test_what_is_printed(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train("printed")
    printed = capsys.readouterr().out
    assert "untouched base" in printed and "step 2" in printed and "step 1" not in printed[:200]
    assert result_of(run)["verdict"] in printed
    assert str(run / "report.html") in printed
    with (
        Image.open(run / "sheet.png") as sheet,
        Image.open(run / "samples/step-000002.png") as grid,
    ):
        assert grid.width < sheet.width < 2 * grid.width, "two grids, the labels once"


def test_the_chosen_one_is_exported(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(1, monkeypatch)
    run = place.train("chosen", training__learning_rate=1e-2)
    assert result_of(run)["chosen"] == 1 and find_snapshot(run).name == "step-000001"
    exported, snapshot = load_base(run / "export"), weights(run, 1)
    for key, tensor in exported.unet.state_dict().items():
        assert torch.equal(tensor, snapshot[key]), key
    about = json.loads((run / "export" / "dreambooth.json").read_text())
    assert (about["identifier"], about["class_noun"], about["step"]) == ("sks", "robot", 1)
    assert about["metrics"] == result_of(run)["snapshots"]["1"]

    def again(step: int | None, *words: str) -> None:
        choose(step, monkeypatch)
        (run / "evaluation.json").unlink()
        assert main.main(["--resume", str(run), *words]) == 0

    made = (run / "export" / "model_index.json").stat().st_mtime_ns
    again(1)
    assert (run / "export" / "model_index.json").stat().st_mtime_ns == made, "it was there"
    again(2)
    assert json.loads((run / "export" / "dreambooth.json").read_text())["step"] == 2
    again(2, "evaluation.export=false")
    assert json.loads((run / "export" / "dreambooth.json").read_text())["step"] == 2
    again(None)
    again(None, "evaluation.export=true")
    assert not (run / "export").exists()


def test_where_nothing_passes_the_last_one_is_taken_and_that_is_said(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose(None, monkeypatch)
    monkeypatch.setattr(results, "verdict", lambda *_: "Nothing passes. Change everything.")
    run = place.train("refused")
    assert result_of(run)["chosen"] is None and not (run / "export").exists()
    assert find_snapshot(run).name == "step-000002"
    assert "passed its evaluation: taking the last, step 2" in caplog.text


def test_pictures_of_a_run_say_what_they_are(place: Workspace) -> None:
    run = place.train("told", sampling__negative="a [V] dog", samples__seed=3, samples__count=2)
    facts = json.loads((run / "run.json").read_text())
    for name in ("samples/step-000000.png", "samples/step-000002.png", "sheet.png"):
        about = read_settings(run / name)
        assert about["step"] == (0 if "000000" in name else 2)
        assert about["negative"] == "a sks dog", "[V] is filled in"
        assert about["prompts"][0] == "a drawing of sks robot" and about["seeds"] == [3, 4]
        assert about["base_fingerprint"] == facts["base_fingerprint"]
        assert about["steps"] == 2 and about["sampler"] == "dpmpp_2m"
    assert result_of(run)["sampling"]["negative"] == "a sks dog"


def test_interrupted_while_pictures_are_drawn(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch is lost at most: what is there is not drawn again, and the numbers are the same."""
    whole = place.train("whole")
    shutil.rmtree(place.folder / "bases")
    drawn: list[Path] = []

    def save_and_interrupt(picture: Image.Image, path: Path, about: Any) -> None:
        save_picture(picture, path, about)
        drawn.append(path)
        if len(drawn) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pictures, "save_picture", save_and_interrupt)
    stop = 5  # of the base's first batch of 8
    with caplog.at_level(logging.WARNING):
        run = place.train("stopped")
    assert "training is complete" in caplog.text and f"--resume {run}" in caplog.text
    assert not (run / "evaluation.json").exists() and len(drawn) == 5
    stop = 5 + 8 + 18 - 5  # in the midst of those of step 1
    assert main.main(["--resume", str(run)]) == 0
    assert not (run / "evaluation.json").exists()
    stop = -1
    assert main.main(["--resume", str(run)]) == 0
    needed = 12 + 6 + 2 * 12
    assert needed < len(drawn) <= needed + 2 * 8
    assert result_of(run)["snapshots"] == result_of(whole)["snapshots"]


def test_interrupted_while_measuring(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signals, read = [signal.SIGTERM], BrightnessOracle.read

    def read_and_interrupt(oracle: BrightnessOracle, pictures: Any) -> list[Reading]:
        if signals:  # a second one would end this process
            os.kill(os.getpid(), signals.pop())
        return read(oracle, pictures)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(BrightnessOracle, "read", read_and_interrupt)
        run = place.train("stopped")
    assert "training is complete" in caplog.text
    assert not (run / "evaluation.json").exists()
    assert main.main(["--resume", str(run)]) == 0
    assert "2" in result_of(run)["snapshots"]


def test_the_untouched_base_is_drawn_once_for_all_runs(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.train("first", training__learning_rate=1e-2)
    drawn: list[Path] = []

    def spy(picture: Image.Image, path: Path, about: Any) -> None:
        drawn.append(path)
        save_picture(picture, path, about)

    monkeypatch.setattr(pictures, "save_picture", spy)
    second = place.train("second", training__learning_rate=1e-4)
    assert result_of(first)["base"] == result_of(second)["base"]
    assert {path.parents[1].name for path in drawn} == {"step-000001", "step-000002"}


def test_heldout_pictures_are_what_is_compared_with(place: Workspace) -> None:
    without = place.train("without")
    heldout = place.pictures / "heldout"
    heldout.mkdir()
    for number, colour in enumerate(("purple", "orange")):
        Image.new("RGB", (40, 40), colour).save(heldout / f"{number}.png")
    compared = result_of(place.train("with"))
    assert compared["references"]["compared_with"] == "heldout"
    for metric in ("subject/fidelity/oracle", "loss/subject"):
        assert compared["base"][metric] != result_of(without)["base"][metric]


def test_without_an_oracle_and_networks_losses_are_what_is_left(place: Workspace) -> None:
    run = place.train("little", evaluation__oracle="null", evaluation__dino=place.folder / "no")
    result = result_of(run)
    assert "no such folder" in result["missing"]["dino"]
    assert result["base"].keys() == {"loss/subject", "loss/class"}
    assert result["chosen"] is None and "nothing to compare" in result["verdict"]
    prompts = result["choosing"]["prompts"] + result["reporting"]["prompts"]
    assert len(prompts) == 5 and all("sks" in prompt for prompt in prompts), "those of the grids"
    assert result["images"] == {"subject": 10, "class": 6, "unrelated": 24}


def test_a_run_without_evaluation_has_none(place: Workspace) -> None:
    place.settings = {k: v for k, v in place.settings.items() if not k.startswith("evaluation")}
    run = place.train("none", evaluation="null")
    assert not (run / "evaluation.json").exists() and not (run / "evaluation").exists()
    assert (run / "sheet.png").exists()


def test_a_damaged_snapshot_is_left_out(place: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    run = place.train("damaged")
    (run / "snapshots/step-000001/unet.safetensors").write_bytes(b"no")
    shutil.rmtree(run / "evaluation")
    (run / "evaluation.json").unlink()
    assert main.main(["--resume", str(run)]) == 0
    assert "not measured" in caplog.text and "unet.safetensors is damaged" in caplog.text
    assert list(result_of(run)["snapshots"]) == ["2"]


# --- trouble at the end


def remove_at_the_end(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """The files go while training runs: all that training needs of them it has by then."""
    step = DreamBoothModule.training_step

    def training_step(module: DreamBoothModule, batch: Any, batch_idx: int) -> Any:
        for path in paths:
            path.unlink(missing_ok=True)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(DreamBoothModule, "training_step", training_step)


def test_a_picture_that_is_gone_is_left_out(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remove_at_the_end(monkeypatch, place.pictures / "1.png")
    run = place.train("two")
    assert "1.png" in caplog.text and "left out" in caplog.text
    result = result_of(run)
    assert result["base"]["loss/subject"]["n"] == 2 and result["ceiling"]["subject/fidelity/oracle"]
    assert (run / "sheet.png").exists()


def test_when_all_pictures_are_gone_it_is_said_what_to_do(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        remove_at_the_end(patch, *place.pictures.glob("*.png"))
        assert place.main("--name", "gone") == 2
    (run,) = place.logs.glob("*_gone")
    message = capsys.readouterr().err
    assert f"no picture of the subject can be read from {place.pictures}" in message
    assert f"measure again: python main.py --resume {run}" in message
    place.draw_pictures()
    assert main.main(["--resume", str(run)]) == 0
    assert "subject/fidelity/oracle" in result_of(run)["base"]


def fail_in(where: Any, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, name, fail)


def test_sheet_and_report_that_fail_cost_nothing_else(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        fail_in(finish, "result_sheet", full, patch)
        fail_in(one_run, "write_report", full, patch)
        run = place.train("neither")
    assert "sheet.png" in caplog.text and "no report" in caplog.text
    assert (run / "evaluation.json").exists() and not (run / "report.png").exists()
    assert (
        "The run is complete; its report could not be written" in (run / "report.html").read_text()
    )
    assert main.main(["--resume", str(run)]) == 0
    assert (run / "report.png").exists() and (run / "sheet.png").exists()
    assert "what comes after it is not" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("cannot have so much"), "out of memory"),
    ],
)
def test_numbers_that_fail_for_a_known_reason(
    error: Exception,
    said: str,
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        fail_in(results, "write_json", error, patch)
        assert place.main("--name", "full") == 2
    message = capsys.readouterr().err
    (run,) = place.logs.glob("*_full")
    assert said in message and "Traceback" not in message
    assert "training is complete and saved" in message
    assert f"python main.py --resume {run}" in message
    assert (run / "snapshots/step-000002/unet.safetensors").exists()
    assert main.main(["--resume", str(run)]) == 0
    assert (run / "evaluation.json").exists()


def test_numbers_that_fail_for_an_unknown_reason(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in(results, "select", RuntimeError("a cosmic ray"), monkeypatch)
    with pytest.raises(RuntimeError, match="a cosmic ray") as raised:
        place.main("--name", "ray")
    (note,) = raised.value.__notes__
    assert "training is complete and saved" in note and "--resume" in note
