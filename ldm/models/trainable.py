"""Which parts are trained: UNet always, text encoder or its embedding if asked, VAE never."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ldm.models.adapters import Adapter
from ldm.models.base import BaseModel


def prepare_training(
    base: BaseModel,
    text_encoder: bool,
    gradient_checkpointing: bool,
    embedding: bool = False,
    adapters: Mapping[str, Adapter] | None = None,
) -> dict[str, nn.Module]:
    """Set modes and gradients of `base`'s parts in place; return the trained ones by name.

    `embedding`: of a text encoder that is not trained, its token embedding is. adapters: those in
    `base`'s networks, which are trained in their place; else empty or None.

    Trained parts are float32 (mixed precision casts in the forward pass, the optimizer needs the
    full weights), in train mode, and recompute activations in the backward pass if
    `gradient_checkpointing`. All others are in eval mode without gradients.
    """
    for part in (base.vae, base.unet, base.text_encoder):
        part.requires_grad_(False).eval()
    trained: dict[str, nn.Module] = {"unet": base.unet}
    if text_encoder or embedding:
        trained["text_encoder"] = base.text_encoder
    if adapters:
        trained = {**adapters}
    for module in trained.values():
        nn.Module.to(module, torch.float32)  # diffusers' own warns for nothing
        module.requires_grad_(True).train()
    if embedding and not text_encoder and not adapters:  # those have its rows
        base.text_encoder.requires_grad_(False)
        base.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    if gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
        if text_encoder:
            base.text_encoder.gradient_checkpointing_enable()
    return trained


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters in `modules`, trained or not."""
    return sum(p.numel() for module in modules for p in module.parameters())
