"""The base's own prediction as a target: the untouched one's, whatever is trained beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.models.adapters import add_adapters
from ldm.models.base import BaseModel, frozen_copy, load_base
from ldm.models.frozen import FrozenPrediction
from ldm.models.text import TextEmbedding, TextEncoders
from ldm.models.trainable import prepare_training
from ldm.models.unet import predict
from tests.models.test_adapters import disturb, settings_of

PROMPTS = ["a robot", "a dog on the beach", "a robot"]


@pytest.fixture(params=["eps", "v"])
def base(tiny_base_folder: Callable[[str], Path], request: pytest.FixtureRequest) -> BaseModel:
    return load_base(tiny_base_folder(request.param))


def noisy() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([3, 500, 999])


@torch.no_grad()
def plain(base: BaseModel, latents: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """The UNet, written out, sample by sample."""
    parts = []
    for x, step, prompt in zip(latents, t, prompts, strict=True):
        text = base.text.encode([prompt], "cpu").states
        parts.append(base.unet(x[None], step, encoder_hidden_states=text, return_dict=False)[0])
    return torch.cat(parts)


def train(base: BaseModel) -> None:
    for part in (base.unet, base.text_encoder):
        part.train().requires_grad_(True)
        for weight in part.parameters():
            weight.data.add_(1)


def test_it_is_the_untouched_base(base: BaseModel) -> None:
    latents, t = noisy()
    wanted = plain(base, latents, t, PROMPTS)
    taught = FrozenPrediction(frozen_copy(base))
    train(base)
    found = taught(latents.requires_grad_(), t, PROMPTS)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad and not found.is_inference()
    with pytest.raises(ValueError, match="frozen_copy"):
        FrozenPrediction(base)


def test_it_is_not_in_training_mode(base: BaseModel) -> None:
    copy = frozen_copy(base)
    for part in copy.unet.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    copy.unet.train()
    taught, latents = FrozenPrediction(copy), noisy()
    assert torch.equal(taught(*latents, PROMPTS), taught(*latents, PROMPTS))
    assert copy.unet.training, "as it was"


@pytest.mark.parametrize("kind", ["lora", "dora", "oft"])
def test_without_its_adapters_it_is_the_untouched_base(base: BaseModel, kind: str) -> None:
    """Bit for bit what a copy predicts; between two passes it changes nothing of the gradients."""
    (token,) = base.tokenizer("robot", add_special_tokens=False).input_ids
    copy, (latents, t) = FrozenPrediction(frozen_copy(base)), noisy()
    wanted, found = copy(latents, t, PROMPTS), []
    own = {"dropout": 0.5, "timestep_rank": 1 if kind == "lora" else None}
    adapters = add_adapters(
        base.networks,
        settings_of(kind, **own),
        encoders={"text_encoder": base.text_encoder},
        tokens={"text_encoder": [token]},
    )
    prepare_training(base, True, True, adapters=adapters)
    disturb(adapters)
    for teacher in (copy, FrozenPrediction(base, adapters.values())):
        torch.manual_seed(0)
        prediction = predict(base.unet, latents, t, base.text.encode(PROMPTS, "cpu"), None)
        taught = teacher(latents[1:], t[1:], PROMPTS[1:])
        torch.testing.assert_close(taught, wanted[1:], rtol=1e-4, atol=1e-5)
        (prediction[1:] - taught).square().mean().backward()
        found.append([taught, *(p.grad for a in adapters.values() for p in a.parameters())])
        for adapter in adapters.values():
            adapter.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert (prediction[1:] - taught).abs().max() > 1e-3
    assert base.unet.training and adapters["unet"].layers


def test_distinct_prompts_are_encoded_once(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    encode = TextEncoders.encode

    def spy(text: TextEncoders, prompts: list[str], device: Any) -> TextEmbedding:
        seen.append(prompts)
        return encode(text, prompts, device)

    monkeypatch.setattr(TextEncoders, "encode", spy)
    taught, (latents, t) = FrozenPrediction(frozen_copy(base)), noisy()
    first = taught(latents, t, PROMPTS)
    assert torch.equal(taught(latents, t, PROMPTS), first)
    assert seen == [["a robot"], ["a dog on the beach"]]
    assert taught.to("cpu") is taught
    taught(latents, t, PROMPTS)
    assert len(seen) == 4  # afresh where the networks are now


def test_a_module_that_holds_it_neither_saves_nor_trains_it(base: BaseModel) -> None:
    module: Any = pl.LightningModule()
    module.teacher = FrozenPrediction(frozen_copy(base))
    module.train().to(torch.float64)
    assert not module.state_dict() and not list(module.parameters())
    assert not list(module.children())
    assert module.teacher.unet.dtype == torch.float32 and not module.teacher.unet.training


def test_dtype_and_autocast(base: BaseModel) -> None:
    latents, t = noisy()
    copy = frozen_copy(base)
    with torch.autocast("cpu", torch.bfloat16):
        found = FrozenPrediction(copy)(latents, t, PROMPTS)
        with torch.no_grad():
            text = [copy.text.encode([p], "cpu").states for p in PROMPTS]
            wanted = copy.unet(latents, t, encoder_hidden_states=torch.cat(text)).sample
    assert wanted.dtype == torch.bfloat16 and found.dtype == torch.float32
    assert torch.equal(found, wanted.float())
    full = FrozenPrediction(copy)(latents, t, PROMPTS)
    assert not torch.equal(found, full)
    half = FrozenPrediction(copy.to("cpu", torch.bfloat16))(latents, t, PROMPTS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.05)
