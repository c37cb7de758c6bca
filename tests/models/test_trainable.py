"""What is trained, what is frozen, and that gradient checkpointing changes memory only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.models.base import BaseModel, load_base
from ldm.models.trainable import count_parameters, prepare_training

TinyFolder = Callable[[str], Path]


@pytest.mark.parametrize("text_encoder", [True, False])
def test_modes_and_gradients(tiny_base_folder: TinyFolder, text_encoder: bool) -> None:
    base = load_base(tiny_base_folder("v"), dtype=torch.bfloat16)
    trained = prepare_training(base, text_encoder, gradient_checkpointing=False)
    assert list(trained) == (["unet", "text_encoder"] if text_encoder else ["unet"])
    for part in (base.unet, base.vae, base.text_encoder):
        is_trained = any(part is module for module in trained.values())
        assert all(p.requires_grad == is_trained for p in part.parameters())
        assert all(module.training == is_trained for module in part.modules())
    assert all(m.dtype == torch.float32 for m in trained.values())
    assert count_parameters(trained.values()) == sum(
        p.numel() for m in trained.values() for p in m.parameters()
    )


def gradients(base: BaseModel, trained: dict[str, torch.nn.Module]) -> list[torch.Tensor]:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = base.text.encode(["a sks robot", "a dog"], "cpu").states
    loss = base.unet(latents, torch.tensor([5, 700]), text).sample.square().mean()
    parameters = [p for module in trained.values() for p in module.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return list(found)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_gradient_checkpointing(tiny_base_folder: TinyFolder, text_encoder: bool) -> None:
    plain = load_base(tiny_base_folder("v"))
    wanted = gradients(plain, prepare_training(plain, text_encoder, False))

    base = load_base(tiny_base_folder("v"))
    trained = prepare_training(base, text_encoder, gradient_checkpointing=True)
    calls = {"unet": 0, "text_encoder": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    base.unet.down_blocks[0].resnets[0].register_forward_pre_hook(count("unet"))
    base.text_encoder.encoder.layers[0].mlp.register_forward_pre_hook(count("text_encoder"))
    found = gradients(base, trained)
    # A checkpointed block runs twice: forward, and again in the backward pass.
    assert calls == {"unet": 2, "text_encoder": 2 if text_encoder else 1}
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)
    assert any(g.abs().max() > 0 for g in found)
