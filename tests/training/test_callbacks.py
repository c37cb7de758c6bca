"""Metrics, sample grids, snapshots and progress around real training steps."""

import csv
import io
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from ldm.checkpoint import list_snapshots
from ldm.sampling.metadata import read_settings
from ldm.training import Average, Metrics, SampleGrid, TrainingProgress, make_trainer
from ldm.training.display import Display
from ldm.training.metrics import COLUMNS, EVALUATED, keep_rows, peak_memory_gib
from ldm.training.samples import undisturbed
from tests.training.job import build_module, train
from tests.training.test_module import Poison

BaseFolder = Callable[[str], Path]
GRID = {"prompts": ["a dog"], "seeds": [3], "base_fingerprint": "f0"}


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def draw_disturbing(device: torch.device) -> Image.Image:
    torch.rand(5)
    return Image.new("RGB", (32, 16), "red")


def test_numbers_reach_the_csv_file_and_tensorboard(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    board = TensorBoardLogger(tmp_path, name="", version="")
    grid = SampleGrid(tmp_path, 2, draw_disturbing, GRID)
    train(tmp_path, base, 3, prior_weight=0.5, loggers=[board], extra=(grid,))
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        for name in ("lr/embedding", *EVALUATED):
            assert row.pop(name) == "", "no pivotal start, and nothing is evaluated"
        numbers = {name: float(value) for name, value in row.items()}
        assert all(math.isfinite(number) for number in numbers.values())
        loss = numbers["loss/instance"] + 0.5 * numbers["loss/prior"]
        assert numbers["loss"] == pytest.approx(loss, rel=1e-5)
        assert numbers["samples_per_second"] * numbers["seconds"] == pytest.approx(6)
        assert numbers["grad_norm"] > 0 and numbers["peak_memory_gib"] > 0.05
    assert [float(row["lr/unet"]) for row in rows] == [0.0005, 0.001, 0.001]
    assert [float(row["lr/text_encoder"]) for row in rows] == [0.00025, 0.0005, 0.0005]

    events = EventAccumulator(str(tmp_path)).Reload()
    for name in set(COLUMNS) - {"step", "lr/embedding", *EVALUATED}:
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == [1, 2, 3]
        assert scalars[1].value == pytest.approx(float(rows[1][name]), rel=1e-5)
    assert [event.step for event in events.Images("samples")] == [0, 2, 3]


def test_what_there_is_not_stays_empty(tiny_base_folder: BaseFolder, tmp_path: Path) -> None:
    train(tmp_path, tiny_base_folder("eps"), 1, text_encoder=False, prior=False)
    (row,) = rows_of(tmp_path)
    assert row["loss/prior"] == row["lr/text_encoder"] == ""
    assert row["loss"] == row["loss/instance"]


def test_rows_are_kept_up_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    keep_rows(path, 0)
    header = path.read_text()
    assert header == ",".join(COLUMNS) + "\n" or header == ",".join(COLUMNS) + "\r\n"
    rows = [",".join([str(step)] * len(COLUMNS)) for step in range(1, 6)]
    path.write_text("\n".join([header.strip(), *rows, "6,0.1"]))
    keep_rows(path, 3)
    assert path.read_text().split() == [header.strip(), *rows[:3]]


def test_grids_at_step_0_every_few_and_the_last_change_nothing(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    plain, _, _ = train(tmp_path / "plain", base, 5)
    grid = SampleGrid(tmp_path / "grids", 2, draw_disturbing, GRID)
    module, _, _ = train(tmp_path / "grids", base, 5, extra=(grid,))
    names = sorted(path.name for path in (tmp_path / "grids/samples").iterdir())
    assert names == [f"step-00000{step}.png" for step in (0, 2, 4, 5)]
    with Image.open(tmp_path / "grids/samples/step-000004.png") as picture:
        assert picture.size == (32, 16) and "parameters" in picture.info
    about = read_settings(tmp_path / "grids/samples/step-000004.png")
    assert GRID.items() <= about.items() and about["step"] == 4
    for key, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[key]), key


def test_sampling_leaves_modes_and_random_state(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"))
    module.trained["unet"].eval()
    module.trained["unet"].get_submodule("conv_in").train()
    modes = [part.training for part in module.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with undisturbed(module):
        module.train()
        torch.rand(7)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(2), expected)
    assert [part.training for part in module.modules()] == modes


def test_only_the_first_grid_may_stop_a_run(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, calls = tiny_base_folder("eps"), []

    def fail_after(good: int) -> Callable[[torch.device], Image.Image]:
        def draw(device: torch.device) -> Image.Image:
            calls.append(device)
            if len(calls) > good:
                raise RuntimeError("no font")
            return draw_disturbing(device)

        return draw

    with pytest.raises(RuntimeError, match="no font"):
        train(tmp_path / "a", base, 2, extra=(SampleGrid(tmp_path / "a", 1, fail_after(0), GRID),))
    calls.clear()
    _, trainer, _ = train(
        tmp_path / "b", base, 2, extra=(SampleGrid(tmp_path / "b", 1, fail_after(1), GRID),)
    )
    assert trainer.global_step == 2
    assert "no sample grid at step 1" in caplog.text


def test_snapshots_every_few_steps_keep_the_newest(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    train(tmp_path, tiny_base_folder("eps"), 5, save_every=2, accumulate=2)
    assert list(list_snapshots(tmp_path / "snapshots")) == [4, 5]  # keep=2 of 2, 4, 5


def test_a_skipped_step_leaves_the_average_alone(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    """Otherwise it would move once more towards the weights of the step before."""
    averages: list[dict[str, torch.Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            (average,) = [one for one in trainer.callbacks if isinstance(one, Average)]
            kept = average.average.state_dict()["unet"]
            averages.append({key: tensor.clone() for key, tensor in kept.items()})

    extra = (Poison({1}), Watch())
    train(tmp_path, tiny_base_folder("eps"), 3, accumulate=1, ema=True, extra=extra)

    def differ(one: int, other: int) -> bool:
        return any(not torch.equal(averages[one][key], averages[other][key]) for key in averages[0])

    assert not differ(0, 1) and differ(1, 2)


def test_progress_is_a_bar_on_a_terminal_only(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, stream = tiny_base_folder("eps"), io.StringIO()
    metrics = Metrics(tmp_path / "other")
    terminal = Console(file=stream, force_terminal=True, width=120)
    train(tmp_path, base, 3, extra=(metrics, TrainingProgress(metrics, Display(terminal))))
    shown = stream.getvalue()
    assert "3/3" in shown and "loss" in shown and "left" in shown

    caplog.clear()
    stream.truncate(0)
    with caplog.at_level(logging.INFO):
        train(tmp_path / "plain", base, 4, accumulate=1)
    assert [line.split(",")[0] for line in caplog.messages if line.startswith("step")] == [
        f"step {n}/4" for n in (1, 2, 3, 4)
    ]


def test_16_mixed_on_a_cpu_says_what_it_becomes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hardware: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    trainer = make_trainer(tmp_path, 1, callbacks=[], precision="16-mixed", hardware=hardware)
    assert trainer.precision == "bf16-mixed"
    assert "bf16-mixed is used" in caplog.text


def test_peak_memory_is_plausible() -> None:
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 64
