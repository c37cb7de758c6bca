"""T-LoRA: which components take part at which timestep, also where passes are computed again."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.models.adapters import add_adapters, exactly_mergeable, merged
from ldm.models.adapters.timestep_rank import TimestepRank
from ldm.models.base import BaseModel, load_base
from ldm.models.trainable import prepare_training
from ldm.models.unet import predict
from ldm.sampling.denoiser import guided_prediction
from tests.models.test_adapters import disturb, networks_of, settings_of

TinyFolder = Callable[[str], Path]
RANK, SMALLEST = 4, 1  # of `settings_of`
RANKS: dict[str, Any] = {"timestep_rank": SMALLEST}


def rank_at(t: int, power: int) -> int:
    """arXiv 2507.05964, in exact fractions."""
    return math.floor(Fraction(1000 - t, 1000) ** power * (RANK - SMALLEST)) + SMALLEST


@pytest.mark.parametrize("power", [1, 2])
def test_ranks_are_those_of_the_paper(power: int) -> None:
    ranks = TimestepRank(RANK, SMALLEST, power, 1000)
    assert [ranks.at(t) for t in range(1000)] == [rank_at(t, power) for t in range(1000)]
    assert ranks.at(0) == RANK and ranks.at(999) == SMALLEST
    counts = [sum(t <= last for last in ranks.last) for t in range(1000)]
    assert counts == [ranks.at(t) for t in range(1000)]


def noisy(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def plain_with(base: BaseModel, ranks: int, state: dict[str, Tensor], scale: float) -> None:
    """Add the first components' products to the plain UNet's weights."""
    for name in {key.rpartition(".lora_")[0] for key in state}:
        down, up = (state[f"{name}.lora_{factor}.weight"].double() for factor in "AB")
        change = up.flatten(1)[:, :ranks] @ down.flatten(1)[:ranks]
        weight = base.unet.get_submodule(name).weight
        weight.data += scale * change.reshape(weight.shape)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@torch.no_grad()
def test_each_sample_has_the_components_of_its_timestep(
    tiny_base_folder: TinyFolder, kind: str
) -> None:
    """As of a network that has these alone, written out; also where guidance doubles the batch."""
    base = load_base(tiny_base_folder("eps"), torch.float64)
    settings = settings_of(kind, **RANKS, timestep_rank_power=2.0)
    adapters = add_adapters(networks_of(base), settings)
    adapters["text_encoder"].merge()
    adapters["unet"].double()
    disturb(adapters)
    state = adapters["unet"].state_dict()
    scale = 2.0 / (RANK if kind == "lora" else RANK**0.5)
    text = base.text.encode(["a robot", "a dog"], "cpu")
    times = torch.tensor([100, 800])
    found = predict(base.unet, noisy(2, 4, 8, 8), times, text, None)
    for place, t in enumerate(times.tolist()):
        alone = load_base(tiny_base_folder("eps"), torch.float64)
        plain_with(alone, rank_at(t, 2), state, scale)
        here = slice(place, place + 1)
        inputs = (noisy(2, 4, 8, 8)[here], t, text[torch.tensor([place])])
        wanted = predict(alone.unet, *inputs, None)
        torch.testing.assert_close(found[here], wanted, rtol=0, atol=1e-10)
        guided, other = (
            guided_prediction(model.unet, *inputs, text[torch.tensor([0])], None, 3.0)
            for model in (base, alone)
        )
        torch.testing.assert_close(guided, other, rtol=0, atol=1e-10)
    assert exactly_mergeable(adapters).keys() == {"text_encoder"}
    with merged({"unet": adapters["unet"]}):
        whole = predict(base.unet, noisy(2, 4, 8, 8), times, text, None)
    assert (whole - found).abs().amax((1, 2, 3)).min() > 1e-4


def test_what_is_computed_again_has_the_ranks_of_its_pass(tiny_base_folder: TinyFolder) -> None:
    """Two shapes of latents, and so two passes, before the backward pass."""
    found = []
    for checkpointing in (False, True):
        base = load_base(tiny_base_folder("eps"))
        adapters = add_adapters(networks_of(base), settings_of("lora", **RANKS))
        prepare_training(base, True, checkpointing, adapters=adapters)
        disturb(adapters)
        text = base.text.encode(["a robot", "a dog"], "cpu")
        losses = [
            predict(base.unet, noisy(2, 4, *size).float(), torch.tensor(times), text, None).mean()
            for size, times in (((8, 8), [0, 999]), ((8, 12), [700, 300]))
        ]
        torch.stack(losses).square().sum().backward()
        found.append([p.grad for p in adapters["unet"].parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        assert plain is not None and checkpointed is not None
        torch.testing.assert_close(plain, checkpointed)
