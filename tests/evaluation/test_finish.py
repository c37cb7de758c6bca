"""The end of a run: numbers beside the untouched base, a table, a sheet."""

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import main
from ldm.evaluation.oracle import Reading
from ldm.run import finish
from ldm.sampling.metadata import read_settings
from ldm.training import DreamBoothModule
from tests.evaluation.fake import BrightnessOracle
from tests.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    place = Workspace(tmp_path, tiny_base_folder("v"))
    del place.settings["evaluation"]
    place.settings |= {
        "evaluation.oracle": "tests.evaluation.fake:BrightnessOracle",
        "evaluation.images": 1,
        "samples.every": 2,
        "samples.count": 1,
    }
    return place


def test_a_run_ends_with_numbers_beside_the_base(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("measured", training__learning_rate=1e-2)
    result = json.loads((run / "evaluation.json").read_text())
    metrics = {"subject/light", "subject/similarity", "class/light", "class/diversity"}
    assert metrics < result["base"].keys()
    assert result["base"].keys() == result["snapshots"]["2"].keys()
    assert result["base"] != result["snapshots"]["2"], "the trained weights were measured"
    assert result["chosen"] == 2
    assert all(s["low"] <= s["value"] <= s["high"] for s in result["base"].values())
    printed = capsys.readouterr().out
    assert "untouched base" in printed
    assert "step 2" in printed
    with (
        Image.open(run / "sheet.png") as sheet,
        Image.open(run / "samples/step-000002.png") as grid,
    ):
        assert grid.width < sheet.width < 2 * grid.width, "two grids, the labels once"


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
    result = json.loads((run / "evaluation.json").read_text())
    assert result["sampling"]["negative"] == "a sks dog"


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
        run = place.train("stopped", evaluation__images=2)
    assert "training is complete" in caplog.text and f"--resume {run}" in caplog.text
    assert not (run / "evaluation.json").exists()
    assert main.main(["--resume", str(run)]) == 0
    assert "2" in json.loads((run / "evaluation.json").read_text())["snapshots"]


def test_the_untouched_base_measures_the_same_whatever_was_trained(place: Workspace) -> None:
    first = place.train("first", training__learning_rate=1e-2)
    second = place.train("second", training__learning_rate=1e-4)
    numbers = [json.loads((run / "evaluation.json").read_text())["base"] for run in (first, second)]
    assert numbers[0] == numbers[1]


def test_heldout_pictures_are_what_is_compared_with(place: Workspace) -> None:
    without = place.train("without")
    heldout = place.pictures / "heldout"
    heldout.mkdir()
    for number, colour in enumerate(("purple", "orange")):
        Image.new("RGB", (40, 40), colour).save(heldout / f"{number}.png")
    with_heldout = place.train("with")
    numbers = [
        json.loads((run / "evaluation.json").read_text())["base"]["subject/similarity"]["value"]
        for run in (without, with_heldout)
    ]
    assert numbers[0] != numbers[1]


def test_a_run_without_evaluation_has_none(place: Workspace) -> None:
    place.settings = {k: v for k, v in place.settings.items() if not k.startswith("evaluation")}
    run = place.train("none", evaluation="null")
    assert not (run / "evaluation.json").exists()
    assert (run / "sheet.png").exists()


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
    result = json.loads((run / "evaluation.json").read_text())
    assert "subject/similarity" in result["base"] and result["ceiling"]["subject/similarity"]
    assert (run / "sheet.png").exists()


def test_when_all_pictures_are_gone_there_is_no_similarity(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, read = place.train("whole"), BrightnessOracle.read

    def read_some(oracle: BrightnessOracle, pictures: Any) -> list[Reading]:
        assert len(pictures), "an oracle need not know what to make of nothing"
        return read(oracle, pictures)

    monkeypatch.setattr(BrightnessOracle, "read", read_some)
    remove_at_the_end(monkeypatch, *place.pictures.glob("*.png"))
    run = place.train("none")
    expected = json.loads((whole / "evaluation.json").read_text())
    result = json.loads((run / "evaluation.json").read_text())
    gone = {"subject/similarity", "class/similarity"}
    assert expected["base"].keys() - result["base"].keys() == gone
    assert result["snapshots"]["2"].keys() == result["base"].keys() and result["ceiling"] == {}
    for metric in result["base"]:
        assert result["base"][metric] == expected["base"][metric]
    with Image.open(whole / "sheet.png") as with_strip, Image.open(run / "sheet.png") as without:
        assert 64 < without.height < with_strip.height - 64, "the grids alone"
    assert capsys.readouterr().out.count("evaluation  ") == 2, "both ended as usual"


def fail_in(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(finish, name, fail)


def test_a_sheet_that_fails_costs_the_sheet(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail_in("result_sheet", OSError(28, "No space left on device"), monkeypatch)
    run = place.train("sheetless")
    assert "sheet.png: [Errno 28] No space left" in caplog.text
    assert (run / "evaluation.json").exists() and not (run / "sheet.png").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "evaluation.json: No space left on device; free"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
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
        fail_in("write_json", error, patch)
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
    fail_in("measure", RuntimeError("a cosmic ray"), monkeypatch)
    with pytest.raises(RuntimeError, match="a cosmic ray") as raised:
        place.main("--name", "ray")
    (note,) = raised.value.__notes__
    assert "training is complete and saved" in note and "--resume" in note
