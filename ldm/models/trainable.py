"""Which parts are trained: UNet always, text encoders or their embedding if asked, VAE never."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ldm.models.adapters import Adapter
from ldm.models.base import BaseModel
from ldm.models.quantised import QuantisedLinear


def prepare_training(
    base: BaseModel,
    text_encoder: bool,
    gradient_checkpointing: bool,
    embedding: bool = False,
    adapters: Mapping[str, Adapter] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, nn.Module]:
    """Set modes and gradients of `base`'s parts in place; return the trained ones by name.

    `text_encoder`: all of them, two in SDXL; `embedding`: of text encoders that are not trained,
    the token embedding is. adapters: those in `base`'s networks, which are trained in their place
    (and have rows of the embedding); else empty or None.

    Trained parts are of `dtype`: float32 (mixed precision casts in the forward pass, the optimizer
    needs the full weights), or bfloat16 for an optimizer that rounds stochastically; in train mode,
    and recompute activations in the backward pass if `gradient_checkpointing`. All others are in
    eval mode without gradients. Without gradients are those layers, too, of a trained text encoder
    that nothing reads (`TextEncoders.unread`): weight decay would move them, and processes would
    wait for their gradients.
    """
    for part in (base.vae, *base.networks.values()):
        part.requires_grad_(False).eval()
    whole = text_encoder or embedding
    trained: dict[str, nn.Module] = base.networks if whole else {"unet": base.unet}
    if adapters:
        trained = {**adapters}
    for module in trained.values():
        if any(parameter.dtype != dtype for parameter in module.parameters()):
            nn.Module.to(module, dtype)  # diffusers' own warns for nothing
        module.requires_grad_(True).train()
    for encoder in base.text.encoders if text_encoder and gradient_checkpointing else ():
        encoder.gradient_checkpointing_enable()
    for encoder in base.text.encoders if embedding and not text_encoder and not adapters else ():
        encoder.requires_grad_(False)
        encoder.get_input_embeddings().weight.requires_grad_(True)
    for parameter in base.text.unread():
        parameter.requires_grad_(False)
    if gradient_checkpointing:
        trained["unet"].enable_gradient_checkpointing()  # type: ignore[operator]
    return trained


def count_unread(base: BaseModel) -> int:
    """Return the number of parameters of text encoders that are never read, so never trained."""
    return sum(p.numel() for p in base.text.unread())


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters in `modules`, trained or not, in however few bits."""
    parts = [part for module in modules for part in module.modules()]
    packed = [part for part in parts if isinstance(part, QuantisedLinear)]
    whole = sum(p.numel() for part in parts for p in part.parameters(recurse=False))
    return whole + sum(part.in_features * part.out_features for part in packed)
