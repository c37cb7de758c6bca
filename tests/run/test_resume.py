"""Going on with a run: exactly where it stopped, or a reason why not."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from tests.workspace import Workspace, difference, weights


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


def test_resume_is_exact(place: Workspace) -> None:
    straight = place.train("straight", training__steps=4, samples__every=2)
    run = place.train("resumed", training__steps=2, samples__every=2)
    assert main.main(["--resume", str(run), "training.steps=4", "samples.every=1"]) == 0
    assert difference(straight, run, step=4) == 0
    assert difference(straight, run, step=4, part="text_encoder") == 0
    with (run / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    assert "steps: 4" in (run / "config.yaml").read_text(encoding="utf-8")


def test_resume_starts_over_where_nothing_was_saved(place: Workspace) -> None:
    run = place.train("begun")
    expected = weights(run, 2)
    for path in run.iterdir():
        if path.name not in ("config.yaml", "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main.main(["--resume", str(run)]) == 0
    assert all(torch.equal(expected[key], value) for key, value in weights(run, 2).items())


def test_resume_refuses_other_values(
    place: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = place.train("begun", training__steps=1)
    assert main.main(["--resume", str(run), "training.batch=4", "seed=1", "training.steps=2"]) == 2
    message = capsys.readouterr().err
    assert "training.batch=4, was 2" in message and "seed=1, was 0" in message
    assert "training.steps" not in message
    assert main.main(["--resume", str(tmp_path / "none")]) == 2
    assert main.main(["--resume", str(place.pictures)]) == 2
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(facts | {"base_fingerprint": "0"}), encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=2"]) == 2
    assert "model.base" in capsys.readouterr().err


def test_fewer_steps_than_are_done(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train("done")
    before = (run / "config.yaml").read_bytes()
    assert main.main(["--resume", str(run), "training.steps=1"]) == 2
    message = capsys.readouterr().err
    assert "training.steps=1" in message and "2 steps behind it" in message
    assert (run / "config.yaml").read_bytes() == before


def test_a_learning_rate_that_will_jump_is_warned_of(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    falling = place.train("falling", training__schedule="linear")
    constant = place.train("constant")
    said = []
    for run, steps in ((falling, 2), (constant, 3), (falling, 3)):
        caplog.clear()
        assert main.main(["--resume", str(run), f"training.steps={steps}"]) == 0
        said.append("training.steps=3, was 2" in caplog.text)
    assert said == [False, False, True]


def test_results_of_an_earlier_end_go_when_training_goes_on(place: Workspace) -> None:
    run = place.train("done")
    results = [run / "evaluation.json", run / "sheet.png"]
    for path in results:
        path.write_text("of step 2", encoding="utf-8")
    assert main.main(["--resume", str(run)]) == 0
    assert all(path.exists() for path in results), "there was nothing left to train"
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0
    assert not any(path.exists() for path in results)
