"""Snapshots while training: which are made, what they hold, which stay, and what if they cannot."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm.checkpoint import find_resume, list_snapshots, load_snapshot
from ldm.checkpoint.files import write_json
from ldm.errors import UserError
from ldm.training.callbacks import Snapshots
from tests.training.test_saving import Line, fit


def test_snapshots_of_chosen_and_newest_stay(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    write_json(tmp_path / "evaluation.json", {"chosen": 2})
    write_json(tmp_path / "evaluation.previous.json", {"chosen": 4})
    fit(tmp_path, 9, 1, 100, Snapshots(tmp_path, {"line": module}, {}, 2, keep=2))
    assert list(list_snapshots(tmp_path / "snapshots")) == [2, 4, 8, 9]


@pytest.mark.parametrize("content", [{"chosen": None}, {"chosen": [2]}, {}, [2], None])
def test_numbers_that_choose_nothing(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "evaluation.json", content)
    fit(tmp_path, 5, 1, 100, Snapshots(tmp_path, {"line": nn.Linear(2, 1)}, {}, 2, keep=1))
    assert list(list_snapshots(tmp_path / "snapshots")) == [5]


def test_snapshots_hold_averages_and_the_weights_to_look_at(tmp_path: Path) -> None:
    module, asked = nn.Linear(2, 1), []

    class Averaging(torch.optim.AdamW):
        """As schedule-free ones: what is meant is another weight than what is trained."""

        def eval(self) -> None:
            asked.append("eval")
            module.weight.data.fill_(2.0)

        def train(self) -> None:
            asked.append("train")
            module.weight.data.fill_(1.0)

    class Averaged(Line):
        def configure_optimizers(self) -> Any:
            return Averaging(self.parameters(), lr=0.05)

    ema = {"line": {"weight": torch.full((1, 2), 3.0)}}
    snapshots = Snapshots(tmp_path, {"line": module}, {}, 2, ema=lambda: ema)
    fit(tmp_path, 3, 1, 100, snapshots, model=Averaged)
    assert asked == ["eval", "train"] * 2 and (module.weight == 1).all()
    for averaged, value in ((False, 2.0), (True, 3.0)):
        load_snapshot(tmp_path / "snapshots/step-000003", {"line": module}, averaged)
        assert (module.weight == value).all()


@pytest.mark.parametrize(
    ("every", "lost"),
    [
        (100, "nothing was saved yet, steps lost: 4"),
        (3, "the last save is of step 3, steps lost: 1"),
        (2, "the last save is of step 2, steps lost: 2"),  # this step's state is not saved either
    ],
)
def test_a_snapshot_that_cannot_be_written_stops_training(
    tmp_path: Path, every: int, lost: str
) -> None:
    (tmp_path / "snapshots").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write .*snapshots.*; {lost}; .*--resume"):
        fit(tmp_path, 9, 1, every, Snapshots(tmp_path, {"line": nn.Linear(1, 1)}, {}, 4))
    point = find_resume(tmp_path)
    assert (point.step if point else 0) == {100: 0, 3: 3, 2: 2}[every]


def test_the_last_snapshot_is_written_again_where_it_is_not_whole(tmp_path: Path) -> None:
    module, folder = nn.Linear(2, 1), tmp_path / "snapshots"

    def go_on() -> int:
        fit(tmp_path, 3, 1, 100, Snapshots(tmp_path, {"line": module}, {}, 2, keep=1))
        return (folder / "step-000003" / "manifest.json").stat().st_mtime_ns

    first = go_on()
    assert go_on() == first, "it is whole"
    file = folder / "step-000003" / "line.safetensors"
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[:-1]), lambda: shutil.rmtree(folder)):
        damage()
        assert go_on() > first and file.read_bytes() == whole
        assert [path.name for path in folder.iterdir()] == ["step-000003"]
