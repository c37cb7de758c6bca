"""The training step: one forward pass, masks, equal parts, frozen parts, gradient norm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.optim import SGD

from ldm.objective import per_sample_loss
from ldm.training.module import DreamBoothModule, draw
from tests.training.job import build_data, build_module, train

BaseFolder = Callable[[str], Path]


def batches(module: DreamBoothModule, accumulate: int, **options: Any) -> list[dict[str, Any]]:
    """The micro-batches of step 3, as they reach the training step."""
    data = build_data(accumulate=accumulate, **options)
    parts = [data.micro_batch(3, part) for part in range(accumulate)]
    return [module.on_before_batch_transfer(dict(part), 0) for part in parts]


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_loss_is_the_formula_written_out(tiny_base_folder: BaseFolder, kind: str) -> None:
    module = build_module(tiny_base_folder(kind), seed=7, prior_weight=0.3, min_snr_gamma=5.0)
    (batch,) = batches(module, 1)
    out = module.training_step(batch, 0)
    alpha = module.schedule.alphas_cumprod.double()[batch["timesteps"]].reshape(-1, 1, 1, 1)
    clean, noise = batch["latents"].double(), batch["noise"].double()
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = noise if kind == "eps" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    text = module.encode(batch["prompts"])
    predicted = module.trained["unet"](noisy.float(), batch["timesteps"], text).sample
    snr = (alpha / (1 - alpha)).flatten()
    weight = snr.clamp(max=5) / (snr if kind == "eps" else snr + 1)
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
    module.training_step(batch, 0)
    assert sizes == {"unet": [6], "text_encoder": [len(set(batch["prompts"]))]}
    assert len(set(batch["prompts"])) < 6


def test_micro_batches_draw_and_average_to_the_whole_step(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7, min_snr_gamma=5.0)

    def gradients(accumulate: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        module.zero_grad()
        parts = [module.training_step(b, 0)["loss"] for b in batches(module, accumulate)]
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


def test_draws_depend_on_seed_step_and_place_alone(tiny_base_folder: BaseFolder) -> None:
    data = build_data()
    batch = dict(data.micro_batch(3, 0))
    latents, noise, t = draw(batch, 7, 1000)
    torch.manual_seed(1)
    again = draw(batch, 7, 1000)
    assert all(torch.equal(a, b) for a, b in zip((latents, noise, t), again, strict=True))
    assert len({float(n.sum()) for n in noise}) == len(noise)  # no two samples share noise
    assert not torch.equal(noise, draw({**batch, "step": 4}, 7, 1000)[1])
    assert not torch.equal(noise, draw(batch, 8, 1000)[1])
    deviation = (latents - data.micro_batch(3, 0)["mean"]) / 0.1
    assert deviation.std() == pytest.approx(1, abs=0.1)
    assert not torch.allclose(deviation, noise)
    assert t.min() >= 0 and t.max() < 1000


def test_a_frozen_text_encoder_is_no_part_and_does_not_change(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    module, _, _ = train(tmp_path, base, 2, text_encoder=False)
    (frozen,) = module._text_encoder
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
        module.training_step(batches(module, 1)[0], 0)["loss"].backward()
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
    out = module.training_step(batch, 0)
    assert out["loss"] == out["loss/instance"] and out["loss/prior"].isnan()
    assert per_sample_loss(batch["noise"], batch["noise"]).shape == (2,)
