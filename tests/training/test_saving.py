"""Saving while training: what resume states and snapshots are made, and what happens if not."""

import copy
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ldm.checkpoint import ResumeIO, find_resume
from ldm.errors import UserError
from ldm.training.callbacks import Interrupt, ResumeState, Snapshots
from ldm.training.room import state_bytes
from ldm.training.steps import share_failure

SAMPLES = 4  # per step

Usage = namedtuple("Usage", "total used free")


Moment = Callable[[str, int, int], None]  # called with a place, step and micro-batch


class Stream(IterableDataset[Any]):
    """Micro-batch p of step s holds the samples p, p + 1, ... of that step, from `start` on."""

    def __init__(self, start: int, accumulate: int, moment: Moment) -> None:
        self.start, self.accumulate, self.moment = start, accumulate, moment

    def __iter__(self) -> Iterator[Any]:
        share, count = SAMPLES // self.accumulate, self.start * self.accumulate
        while True:
            step, part = divmod(count, self.accumulate)
            self.moment("fetch", step, part)
            yield step, torch.arange(part * share, (part + 1) * share)
            count += 1


class Line(pl.LightningModule):
    """Fits a line in float64; remembers which samples each optimizer step has seen."""

    def __init__(
        self, trouble: int | None = None, moment: Moment = lambda place, step, part: None
    ) -> None:
        super().__init__()
        self.moment = moment
        torch.manual_seed(0)
        self.line = nn.Linear(2, 1).double()
        self.seen: dict[int, list[int]] = {}  # step -> samples
        self.trouble = trouble

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step, places = batch
        assert step == self.global_step, "the stream and the optimizer agree"
        self.seen.setdefault(step, []).extend(places.tolist())
        if step == self.trouble:
            self.trainer.should_stop = True
        self.part = batch_idx % self.trainer.accumulate_grad_batches
        self.moment("training_step", step, self.part)
        x = torch.stack([places + step, places * step], 1).double().cos()
        return (self.line(x) - x.prod(1, keepdim=True)).square().mean()

    def on_after_backward(self) -> None:
        self.moment("backward", self.global_step, self.part)

    def on_train_batch_end(self, *_: Any) -> None:
        self.moment("after", self.global_step, self.part)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    run: Path,
    steps: int,
    accumulate: int = 1,
    every: int = 2,
    *extra: Any,
    state: ResumeState | None = None,
    model: type[Line] = Line,
    **more: Any,
) -> tuple[Line, ResumeState]:
    """Train, going on with what is there."""
    interrupt = next((one for one in extra if isinstance(one, Interrupt)), None)
    state = state or ResumeState(run, every, interrupt)
    point = find_resume(run)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        callbacks=[*extra, state],
        plugins=[ResumeIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = model(**more)
    stream = DataLoader(
        Stream(point.step if point else 0, accumulate, module.moment), batch_size=None
    )
    trainer.fit(module, stream, ckpt_path=point.path if point else None, weights_only=True)
    return module, state


def fill(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - free, free))


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (4, 1), (1, 4), (2, 4), (2, 2)])
@pytest.mark.parametrize("stop", [1, 3])
def test_accumulation_may_change_on_the_way(
    tmp_path: Path, first: int, then: int, stop: int
) -> None:
    whole, _ = fit(tmp_path / "whole", 7, first)
    begun, _ = fit(tmp_path / "parted", stop, first)
    ended, _ = fit(tmp_path / "parted", 7, then)
    assert sorted(begun.seen) == list(range(stop)) and sorted(ended.seen) == list(range(stop, 7))
    for step, samples in {**begun.seen, **ended.seen}.items():
        assert samples == whole.seen[step] == [0, 1, 2, 3], step
    for one, other in zip(whole.parameters(), ended.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    states = [
        ResumeIO().load_checkpoint(tmp_path / run / "resume.ckpt") for run in ("whole", "parted")
    ]
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]


def test_the_same_accumulation_changes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, 3, 2)
    checkpoint = ResumeIO().load_checkpoint(tmp_path / "resume.ckpt")
    before = copy.deepcopy(checkpoint["loops"])
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2)
    ResumeState(tmp_path, 1).on_load_checkpoint(trainer, Line(), checkpoint)
    assert checkpoint["loops"] == before


# --- stopping -------------------------------------------------------------------------------------


def test_whatever_stops_training_has_it_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = fit(tmp_path, 9, 2, 100, trouble=3)
    assert state.stopped_at == 4
    point = find_resume(tmp_path)
    assert point is not None and point.step == 4
    assert f"stopped after step 4; go on with: python main.py --resume {tmp_path}" in caplog.text
    _, state = fit(tmp_path, 6, 2, 100)
    assert state.stopped_at is None
    _, state = fit(tmp_path / "end", 2, 1, 100, trouble=1)
    assert state.stopped_at is None, "it had come to its end"


def test_a_signal_saves_and_stops(tmp_path: Path) -> None:
    class Ask(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    _, state = fit(tmp_path, 9, 1, 100, Interrupt(), Ask())
    point = find_resume(tmp_path)
    assert point is not None and point.step == state.stopped_at == 3


# --- disks ----------------------------------------------------------------------------------------


def test_a_full_disk_stops_training_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                monkeypatch.setattr("ldm.checkpoint.files.flush", full)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    said = "resume.ckpt: No space left on device.* the last save is of step 4, steps lost: 2; "
    with pytest.raises(UserError, match=f"{said}.*--resume {tmp_path}"):
        fit(tmp_path, 9, 1, 2, Full())
    monkeypatch.undo()
    point = find_resume(tmp_path)
    assert point is not None and point.step == 4
    assert not list(tmp_path.glob(".*"))
    ended, _ = fit(tmp_path, 9)
    whole, _ = fit(tmp_path / "whole", 9)
    assert torch.equal(ended.line.weight, whole.line.weight)


def test_bytes_of_a_state_are_foretold(tmp_path: Path) -> None:
    module = nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(module.parameters())
    foretold = state_bytes(module, [optimizer])
    module(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    known = state_bytes(module, [optimizer])
    path = tmp_path / "resume.ckpt"
    content = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    ResumeIO().save_checkpoint({"global_step": 1, **content}, path)
    for size in (foretold, known):
        assert size == pytest.approx(path.stat().st_size, rel=0.01)
    plain = torch.optim.SGD(module.parameters(), momentum=0.9)
    module(torch.ones(1, 300)).sum().backward()
    plain.step()
    assert state_bytes(module, [plain]) < 0.7 * known, "what is there counts, where it is there"


@pytest.mark.parametrize(
    ("averaged", "steps", "states"), [(False, 1, 1), (True, 1, 1), (True, 9, 3)]
)
def test_too_little_room_is_warned_of_before_the_first_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    averaged: bool,
    steps: int,
    states: int,
) -> None:
    line = nn.Linear(2, 1).double()
    ema = (lambda: {"line": dict(line.named_parameters())}) if averaged else None
    snapshots = Snapshots(tmp_path, {"line": line}, {}, 2, ema=ema)
    weights = 3 * 8
    average = weights if averaged else 0
    needed = states * (3 * weights + average) + weights + average
    warnings = []
    for free in (needed - 1, needed):
        caplog.clear()
        fill(monkeypatch, free)
        fit(tmp_path / str(free), steps, 1, 2, snapshots)
        warnings.append([r.getMessage() for r in caplog.records if r.name.startswith("ldm")])
    assert len(warnings[0]) == 1 and not warnings[1]
    for said in (str(tmp_path), "need about", "are free", "snapshots.keep", "logs=FOLDER"):
        assert said in warnings[0][0]
    fill(monkeypatch, 0)
    caplog.clear()
    fit(tmp_path / str(needed), steps, 1, 2, snapshots)
    more = [record for record in caplog.records if record.name.startswith("ldm")]
    assert not more, "nothing is left to train"


# --- several processes ----------------------------------------------------------------------------


class TwoProcesses:
    """What a Trainer of two processes is asked, in one of them; the other one has failed."""

    world_size, is_global_zero = 2, True

    def __init__(self) -> None:
        self.strategy = self
        self.said: list[Any] = []

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        self.said.append(decision)
        return True

    def barrier(self, name: str) -> None:
        self.said.append("barrier")

    def save_checkpoint(self, path: Path) -> None:
        raise UserError("disk full")


def test_a_failure_of_one_process_is_known_to_all(tmp_path: Path) -> None:
    trainer: Any = TwoProcesses()
    with pytest.raises(UserError, match="its own message"):
        share_failure(trainer, None)
    with pytest.raises(KeyError):
        share_failure(trainer, KeyError("mine"))
    assert trainer.said == [False, True]
    trainer = TwoProcesses()
    with pytest.raises(UserError, match="disk full"):
        ResumeState(tmp_path, 1)._save(trainer)
    assert trainer.said == ["barrier", True], "the other one waits, then hears of it"
