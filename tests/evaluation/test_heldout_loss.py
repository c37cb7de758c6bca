"""The held-out loss: a formula, and that nothing but the weights changes it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import fit
from ldm.evaluation.heldout_loss import heldout_loss, heldout_losses, posterior_means, strata
from ldm.models.base import BaseModel, load_base
from ldm.objective import NoiseSchedule
from ldm.randomness import generator, seed_of

PROMPTS = ["a drawing of a robot", "a photo of sks dog", "a drawing of a robot"]


@pytest.fixture(scope="module", params=["eps", "v"])
def base(request: pytest.FixtureRequest, tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(tiny_base_folder(request.param))


@pytest.fixture(scope="module")
def latents(base: BaseModel) -> Tensor:
    rng = np.random.default_rng(0)
    sizes = [(40, 32), (32, 48), (32, 32)]
    pictures = [
        Image.fromarray(rng.integers(255, size=(*size, 3), dtype=np.uint8)) for size in sizes
    ]
    means = posterior_means(base, pictures, 32, batch=2)
    with torch.no_grad():
        square = fit(pictures[1], 32)[None]
        wanted = base.vae.encode(square).latent_dist.mean * base.vae.config.scaling_factor
    torch.testing.assert_close(means[1:2], wanted)
    return means


def schedule(base: BaseModel) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler(base.scheduler)


def test_timesteps_are_the_middles_of_equal_parts() -> None:
    assert strata(1000, 10) == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    assert strata(1000, 4) == [125, 375, 625, 875]
    assert strata(10, 10) == [*range(10)]


def test_against_a_formula(base: BaseModel, latents: Tensor) -> None:
    found = heldout_losses(base, schedule(base), latents, PROMPTS, seed=3, batch=2)
    with torch.no_grad():
        text = base.text.encode(PROMPTS, "cpu").states
        wanted = []
        for place in range(3):
            of_picture = []
            for part, t in enumerate(strata(1000)):
                source = generator(seed_of(3, "heldout"), "noise", part, place)
                noise = torch.randn(latents.shape[1:], generator=source).double()
                alpha = base.scheduler.alphas_cumprod[t].double()
                clean = latents[place].double()
                noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
                predicted = base.unet(noisy[None].float(), t, text[place : place + 1]).sample[0]
                target = noise
                if base.prediction_type == "v_prediction":
                    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
                of_picture.append(float((predicted.double() - target).square().mean()))
            wanted.append(np.mean(of_picture))
    assert found == pytest.approx(wanted, rel=1e-5)
    score = heldout_loss(found)
    assert score["value"] == pytest.approx(np.mean(wanted)) and score["n"] == 3


def test_nothing_but_the_weights_changes_it(base: BaseModel, latents: Tensor) -> None:
    before = heldout_losses(base, schedule(base), latents, PROMPTS, seed=0)
    torch.randn(5)
    base.unet.train()
    with torch.enable_grad():
        again = heldout_losses(base, schedule(base), latents, PROMPTS, seed=0, batch=1)
    assert base.unet.training, "left as it was"
    base.unet.eval()
    assert again == pytest.approx(before, rel=1e-5)
    alone = heldout_losses(base, schedule(base), latents[:1], PROMPTS[:1], seed=0)
    assert alone == pytest.approx(before[:1], rel=1e-5), "a picture's noise is its own"
    assert heldout_losses(base, schedule(base), latents, PROMPTS, seed=1) != before
    bias = base.unet.conv_out.bias
    with torch.no_grad():
        bias += 1
        moved = heldout_losses(base, schedule(base), latents, PROMPTS, seed=0)
        bias -= 1
    assert min(np.abs(np.subtract(moved, before))) > 0.1


def test_half_precision_is_near(base: BaseModel, latents: Tensor) -> None:
    exact = heldout_losses(base, schedule(base), latents, PROMPTS, seed=0)
    half = heldout_losses(base, schedule(base), latents, PROMPTS, seed=0, precision="bf16-mixed")
    assert half != exact and half == pytest.approx(exact, rel=0.02)


def test_passes_are_counted(base: BaseModel, latents: Tensor) -> None:
    told: list[tuple[int, int]] = []
    heldout_losses(
        base, schedule(base), latents, PROMPTS, 0, batch=2, progress=lambda *n: told.append(n)
    )
    assert told == [(number, 20) for number in range(1, 21)]


def test_a_prompt_for_each_picture(base: BaseModel, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="3 pictures, but 1 prompts"):
        heldout_losses(base, schedule(base), latents, PROMPTS[:1], seed=0)
