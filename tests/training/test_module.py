"""The training step: one forward pass, masks, equal parts, frozen parts, gradient norm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD

from ldm.training.module import DreamBoothModule
from ldm.training.optim import weights_to_look_at
from tests.torture import unequal
from tests.training.job import build_data, build_module, train

BaseFolder = Callable[[str], Path]
MIN_SNR = {"weighting": "min_snr"}


def batches(module: DreamBoothModule, accumulate: int, **options: Any) -> list[dict[str, Any]]:
    """The micro-batches of step 3, as they reach the training step."""
    data = build_data(accumulate=accumulate, **options)
    parts: Any = [data.micro_batch(3, part) for part in range(accumulate)]
    return [one for part in parts for one in module.on_before_batch_transfer(part, 0)]


@pytest.mark.parametrize("kind", ["eps", "v", "sdxl"])
def test_loss_is_the_formula_written_out(tiny_base_folder: BaseFolder, kind: str) -> None:
    module = build_module(tiny_base_folder(kind), seed=7, prior_weight=0.3, objective=MIN_SNR)
    (batch,) = batches(module, 1)
    out = module.training_step([batch], 0)
    alpha = module.objective.schedule.alphas_cumprod.double()[batch["timesteps"]].reshape(
        -1, 1, 1, 1
    )
    clean, noise = batch["latents"].double(), batch["noise"].double()
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean if kind == "v" else noise
    text = module.encode(batch["prompts"])
    added = {"text_embeds": text.pooled, "time_ids": batch["sizes"]} if kind == "sdxl" else None
    predicted = module.trained["unet"](
        noisy.float(), batch["timesteps"], text.states, added_cond_kwargs=added
    ).sample
    snr = (alpha / (1 - alpha)).flatten()
    weight = snr.clamp(max=5) / (snr + 1 if kind == "v" else snr)
    each = weight * (predicted.double() - target).square().mean((1, 2, 3))
    instance, prior = each[:2].mean(), each[2:].mean()
    torch.testing.assert_close(out["loss/instance"].double(), instance, rtol=1e-4, atol=0)
    torch.testing.assert_close(out["loss/prior"].double(), prior, rtol=1e-4, atol=0)
    torch.testing.assert_close(out["loss"].double(), instance + 0.3 * prior, rtol=1e-4, atol=0)


def test_one_forward_pass_and_each_prompt_once(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7)
    (batch,) = batches(module, 1)
    sizes: dict[str, list[int]] = {"unet": [], "text_encoder": []}
    for name, part in module.trained.items():
        part.register_forward_pre_hook(lambda _, args, name=name: sizes[name].append(len(args[0])))
    module.training_step([batch], 0)
    assert sizes == {"unet": [6], "text_encoder": [len(set(batch["prompts"]))]}
    assert len(set(batch["prompts"])) < 6


def test_micro_batches_draw_and_average_to_the_whole_step(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7, objective=MIN_SNR)

    def gradients(accumulate: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        module.zero_grad()
        parts = [module.training_step([b], 0)["loss"] for b in batches(module, accumulate)]
        loss = torch.stack(parts).mean()
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None]

    (loss, whole), (loss_of_parts, parts) = gradients(1), gradients(2)
    torch.testing.assert_close(loss, loss_of_parts)
    assert len(whole) == len(list(module.parameters()))
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)


def test_accumulation_through_lightning_equals_one_batch(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    # plain SGD: Adam divides by |gradient|, which makes a rounding error of a zero one visible
    with patch("ldm.training.module.build_optimizer", lambda parts, *_: sgd(parts)):
        one, _, _ = train(tmp_path / "1", base, 2, accumulate=1)
        two, _, _ = train(tmp_path / "2", base, 2, accumulate=2)
    start = build_module(base).state_dict()
    moved = max((one.state_dict()[k] - start[k]).abs().max().item() for k in start)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[key], rtol=0, atol=1e-3 * moved)
    rows = [(tmp_path / n / "metrics.csv").read_text().splitlines()[1:] for n in "12"]
    losses = [[float(row.split(",")[1]) for row in lines] for lines in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def sgd(parts: dict[str, torch.nn.Module]) -> SGD:
    return SGD([{"params": part.parameters(), "name": name} for name, part in parts.items()], 0.1)


def test_a_frozen_text_encoder_is_no_part_and_does_not_change(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    module, _, _ = train(tmp_path, base, 2, text_encoder=False)
    (frozen,) = module.text.encoders
    assert not any("text" in name for name, _ in module.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    fresh = build_module(base).trained["text_encoder"].state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in frozen.state_dict().items())
    assert not frozen.training
    assert set(module._embeddings) <= {
        "a drawing of sks robot",
        "a photo of sks robot",
        "a drawing of a robot",
    }


def test_training_moves_both_networks_and_never_the_vae(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    module, _, _ = train(tmp_path, base, 2)
    start = build_module(base).state_dict()
    for part in ("unet", "text_encoder"):
        keys = [key for key in start if key.startswith(f"trained.{part}.")]
        assert any(not torch.equal(start[key], module.state_dict()[key]) for key in keys)
    assert not any("vae" in key or "alphas" in key for key in module.state_dict())


def test_clipping_uses_and_keeps_the_one_norm(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7)
    optimizer = SGD(module.parameters(), 0.1)
    for bound in (0.01, 1e6):
        optimizer.zero_grad()
        module.training_step(batches(module, 1), 0)["loss"].backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        before = torch.cat([gradient.flatten() for gradient in gradients])
        module.configure_gradient_clipping(optimizer, bound, "norm")
        after = torch.cat([gradient.flatten() for gradient in gradients])
        assert module.gradient_norm is not None
        torch.testing.assert_close(module.gradient_norm, before.norm(), rtol=1e-4, atol=0)
        expected = min(bound, before.norm().item())
        assert after.norm().item() == pytest.approx(expected, rel=1e-3)


def test_without_class_images(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7)
    (batch,) = batches(module, 1, prior=False)
    out = module.training_step([batch], 0)
    assert out["loss"] == out["loss/instance"] and out["loss/prior"].isnan()


EVERYTHING = {
    "loss": "huber",
    "weighting": "soft_min_snr",
    "noise_offset": 0.1,
    "pyramid_noise": 0.3,
    "input_perturbation": 0.1,
    "timesteps": "logit_normal",
    "timestep_min": 10,
    "mask_outside": 0.2,
}


def in_double(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in batch.items()
    }


def masked(batch: dict[str, Any]) -> dict[str, Any]:
    """With a mask and a weight that depend on each sample's place alone."""
    places = batch["index"].reshape(-1, 1, 1, 1)
    height, width = batch["mean"].shape[-2:]
    grid = torch.arange(height * width).reshape(1, 1, height, width)
    return {
        **batch,
        "mask": ((grid + 7 * places) % 5 < 3).float(),
        "weight": 1.0 + 0.25 * batch["index"],
    }


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("prior", [True, False])
def test_parts_add_up_to_the_whole_in_float64(
    tiny_base_folder: BaseFolder, kind: str, prior: bool
) -> None:
    """Two micro-batches, and two halves of a step on two processes, with every option on."""
    module = build_module(
        tiny_base_folder(kind), seed=7, prior_weight=0.3, objective=EVERYTHING
    ).double()

    def gradients(parts: list[dict[str, Any]]) -> torch.Tensor:
        module.zero_grad()
        for part in parts:
            (batch,) = module.on_before_batch_transfer([masked(part)], 0)
            (module.training_step([in_double(batch)], 0)["loss"] / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def parts_of(accumulate: int, world: int) -> list[dict[str, Any]]:
        return [
            dict(batch)
            for part in range(accumulate)
            for rank in range(world)
            for batch in build_data(prior, accumulate, rank=rank, world=world).micro_batch(3, part)
        ]

    whole = gradients(parts_of(1, 1))
    assert whole.abs().max() > 0
    for accumulate, world in ((2, 1), (1, 2)):
        apart = gradients(parts_of(accumulate, world))
        assert (whole - apart).norm() < 1e-6 * whole.norm()


class Teacher:
    """Predicts zero, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], torch.Tensor]] = []

    def to(self, device: Any) -> None:
        pass

    def __call__(
        self, noisy: torch.Tensor, t: torch.Tensor, prompts: list[str], sizes: torch.Tensor
    ) -> torch.Tensor:
        self.asked.append((prompts, sizes))
        assert len(noisy) == len(t) == len(prompts) == len(sizes)
        return torch.zeros_like(noisy)


def test_class_samples_are_predicted_as_the_teacher_says(tiny_base_folder: BaseFolder) -> None:
    teacher = Teacher()
    module = build_module(tiny_base_folder("eps"), seed=7, teacher=teacher)
    plain = build_module(tiny_base_folder("eps"), seed=7)
    (batch,) = batches(module, 1)
    out, usual = module.training_step([batch], 0), plain.training_step([batch], 0)
    ((prompts, sizes),) = teacher.asked
    assert prompts == ["a drawing of a robot"] * 4
    assert torch.equal(sizes, batch["sizes"][2:])
    assert out["loss/instance"] == usual["loss/instance"]
    noisy = module.objective.noisy(batch)
    text = module.encode(batch["prompts"]).states
    predicted = module.trained["unet"](noisy, batch["timesteps"], text).sample
    expected = predicted[2:].double().square().mean()
    torch.testing.assert_close(out["loss/prior"].double(), expected, rtol=1e-5, atol=0)
    (without,) = batches(module, 1, prior=False)
    module.training_step([without], 0)
    assert len(teacher.asked) == 1


def test_a_samples_weight_multiplies_its_loss(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7)
    (batch,) = batches(module, 1)
    plain = module.training_step([batch], 0)
    batch["weight"] = torch.tensor([3.0, 3.0, 1, 1, 1, 1])
    weighted = module.training_step([batch], 0)
    torch.testing.assert_close(weighted["loss/instance"], 3 * plain["loss/instance"])
    torch.testing.assert_close(weighted["loss/prior"], plain["loss/prior"])


class Poison(pl.Callback):
    """Makes the loss of some steps NaN through one sample's latents."""

    def __init__(self, steps: set[int], sample: int = 1) -> None:
        self.steps, self.sample = steps, sample

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batches: Any, *_: Any) -> None:
        (batch,) = batches
        if batch["step"] in self.steps:
            batch["latents"][self.sample] = torch.nan


class Skip(pl.Callback):
    """Some steps never reach the optimizer."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        step = optimizer.step

        def skipping(closure: Callable[[], Any]) -> Any:
            if trainer.global_step not in self.steps:
                return step(closure)
            closure()
            optimizer.zero_grad()
            return None

        optimizer.step = skipping  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_a_step_that_is_not_finite_is_skipped(
    tiny_base_folder: BaseFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    precision: str,
) -> None:
    base = tiny_base_folder("eps")
    module, trainer, _ = train(
        tmp_path, base, 4, accumulate=2, extra=(Poison({1}),), precision=precision
    )
    assert trainer.global_step == 4
    assert all(p.isfinite().all() for p in module.parameters())
    assert "step 2 is skipped: the loss is not finite for" in caplog.text
    assert module.guard.hopeless is None
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}


def test_a_class_sample_that_is_not_finite_stops_the_embedding_alone_too(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The identifier's row has a finite gradient; that of the class noun's has not."""
    base = tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    poison, phases = Poison({1, 2, 3}, sample=-1), {"pivotal": 6, "tokens": [rows]}
    module, trainer, _ = train(tmp_path, base, 6, accumulate=1, extra=(poison,), phases=phases)
    assert trainer.global_step == 4
    assert module.guard.hopeless is not None and "steps 2, 3, 4" in module.guard.hopeless
    assert "the loss is not finite for" in caplog.text
    (optimizer,) = trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw", "prodigy"])
def test_a_skipped_step_leaves_no_trace(
    tiny_base_folder: BaseFolder, tmp_path: Path, optimizer: str
) -> None:
    """After a skipped first step, the others make what a run without it makes of them."""
    base = tiny_base_folder("eps")
    settings: dict[str, Any] = {"schedule": "constant", "warmup": 0}
    if optimizer == "prodigy":
        settings |= {"learning_rate": 1.0, "text_encoder_learning_rate": 1.0}
    options: dict[str, Any] = {"optimizer": {"optimizer": optimizer, **settings}, "accumulate": 1}
    module, trainer, _ = train(tmp_path / "a", base, 3, extra=(Poison({0}),), **options)
    other, _, _ = train(tmp_path / "b", base, 3, extra=(Skip({0}),), **options)
    with weights_to_look_at(trainer.optimizers[0]):
        found = {key: value.clone() for key, value in module.state_dict().items()}
    with weights_to_look_at(other.trainer.optimizers[0]):
        assert not list(unequal(found, dict(other.state_dict()), "weights"))


def test_three_steps_in_a_row_stop_the_run_with_its_state_saved(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    poison = Poison({1, 2, 3})
    module, trainer, state = train(tmp_path, base, 8, accumulate=1, extra=(poison,))
    assert trainer.global_step == 4 and state.stopped_at == 4
    assert module.guard.hopeless is not None and "steps 2, 3, 4" in module.guard.hopeless
    saved = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
