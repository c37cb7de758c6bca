"""Guidance: one forward pass, and the formulas written out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.models.text import TextEmbedding
from ldm.sampling.denoiser import guided_prediction


class FakeUnet:
    """Predicts latents * mean of the text, and keeps the batch sizes it saw."""

    dtype = torch.float64

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latents: torch.Tensor, t: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        self.batches.append(len(latents))
        return (latents * kwargs["encoder_hidden_states"].mean((1, 2))[:, None, None, None],)


def parts() -> SimpleNamespace:
    draw = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        latents=torch.randn(3, 4, 5, 5, generator=draw, dtype=torch.float64),
        cond=TextEmbedding(torch.rand(3, 7, 6, generator=draw, dtype=torch.float64)),
        uncond=TextEmbedding(torch.rand(3, 7, 6, generator=draw, dtype=torch.float64)),
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_formula_in_one_pass(scale: float, rescale: float) -> None:
    unet: Any = FakeUnet()
    p = parts()
    found = guided_prediction(unet, p.latents, 5, p.cond, p.uncond, None, scale, rescale)
    assert unet.batches == [6]
    for i in range(3):  # each sample by itself
        with_prompt = p.latents[i] * p.cond.states[i].mean()
        without = p.latents[i] * p.uncond.states[i].mean()
        wanted = without + scale * (with_prompt - without)
        wanted = rescale * wanted * with_prompt.std() / wanted.std() + (1 - rescale) * wanted
        torch.testing.assert_close(found[i], wanted)


def test_scale_one_is_the_conditional_prediction_alone() -> None:
    unet: Any = FakeUnet()
    p = parts()
    found = guided_prediction(unet, p.latents, 5, p.cond, None, None, 1.0)
    assert unet.batches == [3]
    torch.testing.assert_close(found, p.latents * p.cond.states.mean((1, 2))[:, None, None, None])
    with pytest.raises(ValueError, match="unconditional"):
        guided_prediction(unet, p.latents, 5, p.cond, None, None, 2.0)


def test_same_rescale_as_diffusers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    from ldm.sampling.denoiser import rescaled

    p = parts()
    guided = p.latents * 3 + 1
    theirs = rescale_noise_cfg(guided, p.latents, guidance_rescale=0.7)
    torch.testing.assert_close(rescaled(guided, p.latents, 0.7), theirs)
