"""Training that an exception ends: the last complete step is saved, and it can go on from there."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ldm.checkpoint import ResumeIO, find_resume
from ldm.errors import UserError
from ldm.training import Interrupted, ResumeState
from tests.torture import unequal
from tests.training.job import train
from tests.training.test_resume_exactly import rows_of
from tests.training.test_saving import fit

BaseFolder = Callable[[str], Path]
PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")


class Raise:
    """Raises at a place in step 3 (0 is the first), or in another one."""

    def __init__(self, error: BaseException, place: str, part: int, step: int = 3) -> None:
        self.error, self.moment = error, (place, step, part)

    def __call__(self, *moment: object) -> None:
        if moment == self.moment:
            raise self.error


def state_of(run: Path) -> dict[str, Any]:
    return ResumeIO().load_checkpoint(run / "resume.ckpt")


def broken_off(run: Path, accumulate: int, moment: Raise, every: int = 100) -> ResumeState:
    state = ResumeState(run, every)
    with pytest.raises(type(moment.error)) as shown:
        fit(run, 7, accumulate, every, state=state, moment=moment)
    assert shown.value is moment.error
    return state


# Lightning fetches one micro-batch ahead: the first of step 3 while the last of step 2 is at hand.
PLACES = [
    (1, "fetch", 0, 2),
    (2, "fetch", 0, 2),
    (2, "fetch", 1, 3),
    (1, "training_step", 0, 3),
    (2, "training_step", 0, 3),
    (2, "training_step", 1, 3),
    (1, "backward", 0, 3),
    (4, "backward", 2, 3),
]


@pytest.mark.parametrize(("accumulate", "place", "part", "complete"), PLACES)
@pytest.mark.parametrize("error", [Interrupted(), RuntimeError("a cosmic ray")])
def test_the_last_complete_step_is_saved_and_gone_on_from(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    accumulate: int,
    place: str,
    part: int,
    complete: int,
) -> None:
    state = broken_off(tmp_path / "parted", accumulate, Raise(error, place, part))
    said = f"after step {complete}; go on with: python main.py --resume {tmp_path / 'parted'}"
    asked = isinstance(error, Interrupted)
    assert state.stopped_at == (complete if asked else None) and state.failure is None
    assert (("stopped " if asked else "saved ") + said) in caplog.messages
    fit(tmp_path / "usual", complete, accumulate)
    usual, parted = state_of(tmp_path / "usual"), state_of(tmp_path / "parted")
    for name in PARTS:
        assert not list(unequal(usual[name], parted[name], name))
    fit(tmp_path / "parted", 7, accumulate)
    fit(tmp_path / "whole", 7, accumulate)
    whole, parted = state_of(tmp_path / "whole"), state_of(tmp_path / "parted")
    for name in (*PARTS, "loops"):
        assert not list(unequal(whole[name], parted[name], name))


def test_what_is_saved_already_is_not_saved_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moment = Raise(Interrupted(), "fetch", 1)
    assert broken_off(tmp_path, 2, moment, every=3).stopped_at == 3
    assert not (tmp_path / "resume.previous.ckpt").exists()
    state = broken_off(tmp_path, 2, Raise(ValueError(), "fetch", 1, step=4))
    assert state.stopped_at is None and state_of(tmp_path)["global_step"] == 4
    caplog.clear()
    state = broken_off(tmp_path / "new", 2, Raise(Interrupted(), "training_step", 1, step=0))
    assert state.stopped_at is None and not (tmp_path / "new").exists()
    assert not [text for text in caplog.messages if "go on" in text]


@pytest.mark.parametrize("place", ["callback", "update", "exit"])
def test_what_is_not_whole_is_not_saved(place: str, tmp_path: Path) -> None:
    """A step whose snapshot is not there, weights in the midst of an update, no time left."""

    class Fails(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if place == "callback" and trainer.global_step == 3:
                raise UserError("no room for a snapshot")

        def on_before_optimizer_step(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
        ) -> None:
            if trainer.global_step == 3:
                vars(pl_module)["weights_are_whole"] = place != "update"
                raise SystemExit(1) if place == "exit" else RuntimeError("a cosmic ray")

    with pytest.raises((UserError, RuntimeError, SystemExit)):
        fit(tmp_path, 7, 1, 100, Fails())
    assert not (tmp_path / "resume.ckpt").exists()


def full(checkpoint: object, path: Path, storage_options: object = None) -> None:
    raise UserError(f"cannot save {path}")


def test_a_save_that_fails_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    def save(io: ResumeIO, *arguments: Any, **more: Any) -> None:
        tries.append(io)
        full(*arguments, **more)

    monkeypatch.setattr(ResumeIO, "save_checkpoint", save)
    broken_off(tmp_path, 1, Raise(ValueError("first"), "training_step", 0))
    assert "the steps from 1 on are lost: cannot save" in caplog.text
    state = broken_off(tmp_path, 1, Raise(Interrupted(), "fetch", 0))
    assert state.stopped_at is None and isinstance(state.failure, UserError)
    tries.clear()
    with pytest.raises(UserError, match="cannot save"):
        fit(tmp_path, 7, 1, 2)
    assert len(tries) == 1, "what could not be saved is not tried again"


# --- the real module ------------------------------------------------------------------------------


class Breaks(pl.Callback):
    """Makes one of the module's hooks raise in one micro-batch of step 3."""

    def __init__(self, part: int) -> None:
        self.part = part

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch[0]["step"] == 3 and batch_idx % 2 == self.part:
            pl_module.objective.noisy = self.fail

    @staticmethod
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("a small device")


PHASES = {"pivotal": 3, "tokens": ((5,),)}


@pytest.mark.parametrize(
    ("part", "more"),
    [(0, {}), (1, {"precision": "bf16-mixed"}), (0, {"phases": PHASES}), (1, {"phases": PHASES})],
)
def test_out_of_memory_in_the_midst_of_a_run(
    tiny_base_folder: BaseFolder, tmp_path: Path, part: int, more: dict[str, Any]
) -> None:
    base = tiny_base_folder("eps")
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path / "parted", base, 5, ema=True, extra=(Breaks(part),), **more)
    point = find_resume(tmp_path / "parted")
    assert point is not None and point.step == 3
    assert [row["step"] for row in rows_of(tmp_path / "parted")] == ["1", "2", "3"]
    train(tmp_path / "parted", base, 5, ema=True, resume=True, **more)
    train(tmp_path / "whole", base, 5, ema=True, **more)
    whole, parted = state_of(tmp_path / "whole"), state_of(tmp_path / "parted")
    for name in (*PARTS, "loops", "callbacks"):
        assert not list(unequal(whole[name], parted[name], name))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parted")


def test_the_optimizers_update_that_fails_leaves_nothing_to_be_saved(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Half(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                (optimizer,) = trainer.optimizers
                optimizer.register_step_post_hook(self.fail)

        @staticmethod
        def fail(*_: Any) -> None:
            raise torch.OutOfMemoryError("a small device")

    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError):
        train(tmp_path, tiny_base_folder("eps"), 4, accumulate=1, extra=(Half(),))
    assert find_resume(tmp_path) is None and "step 2 was half done: not saved" in caplog.text
