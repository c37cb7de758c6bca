"""The end of a run: numbers beside the untouched base, a table, a sheet."""

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import main
from ldm.evaluation.oracle import Reading
from ldm.sampling.metadata import read_settings
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
