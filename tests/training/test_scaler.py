"""16-mixed with its gradient scaler; on a CPU Lightning does without, so it is put in here."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from ldm.errors import UserError
from ldm.training.module import DreamBoothModule
from tests.torture import unequal
from tests.training.job import build_module, train

BaseFolder = Callable[[str], Path]
FITTING, TOO_HIGH = 2.0**10, 2.0**60  # with the latter every gradient is infinite

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {"arguments": {"min_8bit_size": 16}},
    "adafactor": {},
    "prodigy": {"learning_rate": 1.0, "text_encoder_learning_rate": 1.0},
    "schedule_free_adamw": {"schedule": "constant"},
    "lion": {},
}


class Scaled(pl.Callback):
    """Trains in 16-mixed as on a GPU; notes weights, gradient norms and scales after each step."""

    def __init__(self, scale: float, backoff: float = 0.5) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff)
        self.states: list[dict[str, torch.Tensor]] = []
        self.norms: list[float] = []
        self.scales: list[float] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", self.scaler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(pl_module)
        self.norms.append(float(pl_module.gradient_norm))
        self.scales.append(self.scaler.get_scale())

    def note(self, module: pl.LightningModule) -> None:
        self.states.append({key: value.clone() for key, value in module.state_dict().items()})

    def change(self, step: int) -> float:
        """Norm of what step 0, 1, ... changed."""
        before, after = self.states[step : step + 2]
        return float(torch.cat([(before[key] - after[key]).flatten() for key in before]).norm())


class Spoil(pl.Callback):
    """Puts a NaN into the latents of the first sample of some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batches: Any, *_: Any) -> None:
        (batch,) = batches
        if batch["step"] in self.steps:
            batch["latents"][0, 0, 0, 0] = float("nan")


def trained(
    folder: Path, base: Path, steps: int, scaled: Scaled, *more: pl.Callback, **options: Any
) -> DreamBoothModule:
    return train(folder, base, steps, accumulate=1, extra=(scaled, *more), **options)[0]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own, of the project; the libraries have some to say when they are first imported."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("ldm")
    ]


def test_forward_and_backward_are_in_half_precision(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    kinds = set()

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            unet = pl_module.trained["unet"]
            unet.conv_in.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))

    module = trained(tmp_path, tiny_base_folder("eps"), 1, Scaled(FITTING), Look())
    assert kinds == {torch.float16}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_the_gradient_is_unscaled_before_it_is_measured_and_clipped(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    rate, clip = 0.5, 0.01
    plain: dict[str, Any] = {
        "optimizer": "sgd",
        "custom": lambda params, lr: torch.optim.SGD(params, lr=lr),
        "learning_rate": rate,
        "text_encoder_learning_rate": rate,
        "schedule": "constant",
        "warmup": 0,
    }
    scaled = Scaled(FITTING)
    trained(tmp_path / "half", base, 1, scaled, gradient_clip=clip, optimizer=plain)
    whole, _, _ = train(tmp_path / "fp32", base, 1, accumulate=1, optimizer=plain)
    assert whole.gradient_norm is not None and whole.gradient_norm > 10 * clip
    assert scaled.norms[0] == pytest.approx(float(whole.gradient_norm), rel=1e-2)
    assert scaled.change(0) == pytest.approx(rate * clip, rel=1e-3)


def test_fused_only_without_a_scaler(tiny_base_folder: BaseFolder, tmp_path: Path) -> None:
    """A fused step would unscale inside, after the clipping."""
    base = tiny_base_folder("eps")
    module = trained(tmp_path / "half", base, 1, Scaled(FITTING))
    other, _, _ = train(tmp_path / "fp32", base, 1)
    fused = [one.trainer.optimizers[0].defaults["fused"] for one in (module, other)]
    assert fused == [False, True]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "SGD", "custom": torch.optim.SGD}])
def test_a_fused_optimizer_is_refused(
    tiny_base_folder: BaseFolder, tmp_path: Path, settings: dict[str, Any]
) -> None:
    optimizer = {**settings, "arguments": {"fused": True}}
    with pytest.raises(UserError, match="fused"):
        trained(tmp_path, tiny_base_folder("eps"), 1, Scaled(FITTING), optimizer=optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_infinite_gradient_is_skipped_in_silence(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    scaled = Scaled(TOO_HIGH, backoff=FITTING / TOO_HIGH)
    optimizer = {"warmup": 0, "optimizer": name, **OPTIMIZERS[name]}
    base = tiny_base_folder("eps")
    module = trained(tmp_path, base, 3, scaled, gradient_clip=1.0, optimizer=optimizer)
    assert [norm < float("inf") for norm in scaled.norms] == [False, True, True]
    assert scaled.scales == [FITTING] * 3
    assert scaled.change(0) == 0
    assert scaled.change(1) > 0 and scaled.change(2) > 0
    assert all(value.isfinite().all() for value in scaled.states[-1].values())
    assert warnings_of(caplog) == [] and module.guard.hopeless is None


def test_looking_for_the_scale_is_never_hopeless(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scaled = Scaled(TOO_HIGH)
    module = trained(tmp_path, tiny_base_folder("eps"), 5, scaled)
    assert scaled.scales == [TOO_HIGH / 2 ** (step + 1) for step in range(5)]
    assert warnings_of(caplog) == [] and module.guard.hopeless is None


def test_a_loss_that_is_no_number_is_warned_of_and_counted(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scaled = Scaled(FITTING)
    module = trained(
        tmp_path, tiny_base_folder("eps"), 8, scaled, Spoil(1, 3, 4, 5), gradient_clip=1.0
    )
    assert [scaled.change(step) > 0 for step in range(6)] == [True, False, True] + [False] * 3
    assert len(scaled.norms) == 6, "three in a row end it"
    assert module.guard.hopeless is not None and "steps 4, 5, 6" in module.guard.hopeless
    skipped = [line for line in warnings_of(caplog) if "is skipped" in line]
    assert [line.split(" is skipped")[0] for line in skipped] == [f"step {n}" for n in (2, 4, 5, 6)]
    assert all("loss is not finite for" in line for line in skipped)


def test_phases_with_a_scaler(tiny_base_folder: BaseFolder, tmp_path: Path) -> None:
    """The row alone, then everything, then the UNet alone."""
    scaled, base = Scaled(FITTING), tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    phases = {"pivotal": 1, "text_encoder_stop": 2, "tokens": [rows]}
    trained(tmp_path, base, 3, scaled, phases=phases, gradient_clip=1.0)
    parts = []
    for before, after in zip(scaled.states, scaled.states[1:], strict=False):
        moved = [key for key in before if not torch.equal(before[key], after[key])]
        parts.append({key.split(".")[1] for key in moved})
    assert parts == [{"text_encoder"}, {"unet", "text_encoder"}, {"unet"}]


def test_going_on_has_the_scale_that_was_found(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    whole, first, second = (Scaled(TOO_HIGH, backoff=FITTING / TOO_HIGH) for _ in range(3))
    trained(tmp_path / "whole", base, 4, whole)
    trained(tmp_path / "parted", base, 2, first)
    trained(tmp_path / "parted", base, 4, second, resume=True)
    assert first.scales + second.scales == whole.scales == [FITTING] * 4
    assert first.change(0) == 0 and second.change(0) > 0
    assert not list(unequal(whole.states[-1], second.states[-1], "state"))
