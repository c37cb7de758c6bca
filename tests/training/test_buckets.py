"""A micro-batch of several shapes: every sample's loss is its own, whatever its company."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.training.module import DreamBoothModule
from tests.training.job import build_data, build_module
from tests.training.test_module import EVERYTHING, in_double, masked

BaseFolder = Callable[[str], Path]


def batches(
    module: DreamBoothModule, step: int = 3, part: int = 0, **options: Any
) -> list[dict[str, Any]]:
    """A micro-batch, masked and in double precision, as it reaches the training step."""
    made = build_data(batch=4, buckets=True, **options).micro_batch(step, part)
    plain = [masked(dict(batch)) for batch in made]
    return [in_double(batch) for batch in module.on_before_batch_transfer(plain, 0)]


def gradient_of(module: DreamBoothModule, loss: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_samples_of_one_shape_stand_together_with_what_is_theirs() -> None:
    made = build_data(batch=4, buckets=True).micro_batch(3, 0)
    shapes = [tuple(batch["mean"].shape[2:]) for batch in made]
    assert len(made) == 3 and sorted(shapes) == [(6, 10), (8, 8), (12, 4)]
    assert sorted(sum((batch["index"].tolist() for batch in made), [])) == list(range(8))
    of_picture = {"0.png": (6, 10), "1.png": (8, 8), "2.png": (12, 4)}
    for batch, (height, width) in zip(made, shapes, strict=True):
        assert batch["index"].tolist() == sorted(batch["index"].tolist())
        for name, prior in zip(batch["names"], batch["is_prior"].tolist(), strict=True):
            assert (height, width) == ((8, 8) if prior else of_picture[name])
        own = torch.tensor([4.0 * height, 4.0 * width])
        assert (batch["sizes"][:, :2] == own).all() and (batch["sizes"][:, 4:] == own).all()


def test_pictures_captions_and_timesteps_are_those_of_squares(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7)

    def drawn(buckets: bool) -> set[tuple[Any, ...]]:
        found: set[tuple[Any, ...]] = set()
        for step in range(6):
            made: Any = build_data(batch=4, buckets=buckets).micro_batch(step, 0)
            for batch in module.on_before_batch_transfer(made, 0):
                ts = batch["timesteps"].tolist()
                rows = zip(
                    batch["index"].tolist(), batch["names"], batch["prompts"], ts, strict=True
                )
                found |= {(step, *row) for row in rows}
        return found

    assert drawn(True) == drawn(False) and len(drawn(True)) == 6 * 8


def test_the_loss_is_that_of_each_sample_alone(tiny_base_folder: BaseFolder) -> None:
    """Written out for one sample after another, each through the networks by itself."""
    module = build_module(tiny_base_folder("eps"), seed=7, prior_weight=0.3)
    module.double()
    mixed = batches(module)
    out = module.training_step(mixed, 0)
    schedule, kinds = module.objective.schedule, {False: [], True: []}  # type: ignore[var-annotated]
    for batch in mixed:
        for n, t in enumerate(batch["timesteps"].tolist()):
            alpha = schedule.alphas_cumprod.double()[t]
            clean, noise = batch["latents"][n], batch["noise"][n]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            text = module.encode([batch["prompts"][n]]).states
            predicted = module.trained["unet"](noisy[None], t, text).sample[0]
            loss = batch["weight"][n] * (predicted - noise).square().mean()
            kinds[bool(batch["is_prior"][n])].append(loss)
    instance, prior = (torch.stack(losses).mean() for losses in (kinds[False], kinds[True]))
    assert [len(losses) for losses in kinds.values()] == [4, 4] and len(mixed) == 3
    torch.testing.assert_close(out["loss/instance"], instance)
    torch.testing.assert_close(out["loss/prior"], prior)
    torch.testing.assert_close(out["loss"], instance + 0.3 * prior)
    alone = gradient_of(module, instance + 0.3 * prior)
    together = gradient_of(module, module.training_step(mixed, 0)["loss"])
    assert alone.norm() > 0 and (alone - together).norm() < 1e-6 * alone.norm()


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2), (2, 2)])
def test_parts_add_up_to_the_whole(
    tiny_base_folder: BaseFolder, accumulate: int, world: int
) -> None:
    """Of micro-batches and processes, each with shapes of its own, with every option on."""
    module = build_module(
        tiny_base_folder("v"), seed=7, prior_weight=0.3, objective=EVERYTHING
    ).double()
    whole = gradient_of(module, module.training_step(batches(module), 0)["loss"])
    parts = [
        batches(module, part=part, accumulate=accumulate, rank=rank, world=world)
        for part in range(accumulate)
        for rank in range(world)
    ]
    assert len({tuple(tuple(b["latents"].shape) for b in part) for part in parts}) > 1
    mean = torch.stack([module.training_step(part, 0)["loss"] for part in parts]).mean()
    assert (gradient_of(module, mean) - whole).norm() < 1e-6 * whole.norm()


def test_one_pass_for_each_shape_and_each_prompt_once(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("eps"), seed=7).double()
    mixed = batches(module)
    passes: dict[str, list[int]] = {"unet": [], "text_encoder": []}
    for name, part in module.trained.items():
        part.register_forward_pre_hook(lambda _, args, name=name: passes[name].append(len(args[0])))
    module.training_step(mixed, 0)
    prompts = {prompt for batch in mixed for prompt in batch["prompts"]}
    assert passes["unet"] == [len(batch["prompts"]) for batch in mixed] and len(mixed) == 3
    assert passes["text_encoder"] == [len(prompts)]
    noted = [batch for batch, _ in module.guard._noted]
    assert noted == mixed, "whatever is wrong can be named"
