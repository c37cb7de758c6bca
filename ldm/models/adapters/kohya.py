"""Kohya's naming: names of layers, and a reader for DoRA, whose scales diffusers leaves out."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.models.base import BaseModel
from ldm.models.files.keys import Kind, original_layers


def layer_names(
    network: str, module: nn.Module, layers: Iterable[str], kind: Kind
) -> dict[str, str]:
    """Of each layer `lora_unet_...`, `lora_te_...`; of SDXL `lora_te1_...` and `lora_te2_...`."""
    layers, number = list(layers), ""
    paths = {layer: layer for layer in layers}
    if network != "unet":
        paths = {layer: "text_model." + layer.removeprefix("text_model.") for layer in layers}
    elif kind == "sdxl":
        paths = original_layers(module.state_dict(), layers)
    if kind == "sdxl" and network != "unet":
        number = "2" if network.endswith("_2") else "1"
    prefix = "lora_unet" if network == "unet" else f"lora_te{number}"
    return {layer: f"{prefix}_{path.replace('.', '_')}" for layer, path in paths.items()}


@torch.no_grad()
def add_dora(base: BaseModel, file: Path, share: float) -> int:
    """Move the weights of UNet and text encoders by `share` to what a DoRA makes of them, in place.

    That is m (W + s up down) / norm (arXiv 2402.09353, eq. 5), the norm of rows, or of columns
    where m has one number for each of these; a layer without m is a LoRA's. Return the number of
    tensors that had a place. RuntimeError, IndexError: shapes that do not fit.
    """
    tensors = load_file(file)
    used = 0
    for network, module in base.networks.items():
        kinds = (nn.Linear, nn.Conv2d)
        layers = {name: part for name, part in module.named_modules() if isinstance(part, kinds)}
        for name, full in layer_names(network, module, layers, base.kind).items():
            keys = [f"{full}.{key}" for key in ("lora_up.weight", "lora_down.weight", "dora_scale")]
            own = [tensors[key].float() for key in keys if key in tensors]
            if len(own) >= 2:  # else of another kind
                alpha = tensors.get(f"{full}.alpha")
                weight = layers[name].weight
                weight += share * (_decomposed(weight, alpha, *own) - weight)
                used += len(own)
    return used


def _decomposed(
    weight: Tensor, alpha: Tensor | None, up: Tensor, down: Tensor, m: Tensor | None = None
) -> Tensor:
    scale = 1.0 if alpha is None else float(alpha) / len(down)
    changed = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    if m is None:
        return changed
    others = [axis for axis in range(weight.ndim) if m.shape[axis] == 1]
    return changed * m / torch.linalg.vector_norm(changed, dim=others, keepdim=True)
