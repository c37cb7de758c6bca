"""What an evaluation chose stays when training goes on from its end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from ldm.checkpoint import list_snapshots
from tests.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


def test_the_chosen_snapshot_and_its_numbers_stay_when_training_goes_on(place: Workspace) -> None:
    run = place.train("measured", training__steps=4, snapshots__keep=1)
    numbers, previous = run / "evaluation.json", run / "evaluation.previous.json"
    numbers.write_text(json.dumps({"chosen": 4, "base": {}}), encoding="utf-8")

    assert main.main(["--resume", str(run), "training.steps=6"]) == 0
    assert list(list_snapshots(run / "snapshots")) == [4, 6]
    assert not numbers.exists(), "they are not this end's"
    assert json.loads(previous.read_text("utf-8")) == {"chosen": 4, "base": {}}

    assert main.main(["--resume", str(run), "training.steps=7"]) == 0
    assert list(list_snapshots(run / "snapshots")) == [4, 7], "none was chosen since"
    numbers.write_text(json.dumps({"chosen": 7}), encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=8"]) == 0
    assert list(list_snapshots(run / "snapshots")) == [7, 8], "one end before, not all of them"
