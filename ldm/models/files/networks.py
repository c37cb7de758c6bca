"""Networks that are made empty, and filled from a file of weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.files.keys import Place, stored_as
from ldm.models.files.weights_file import WeightsFile


def empty_network(path: Path, part: str, config: Mapping[str, Any]) -> Any:
    """A part's network without memory for its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    try:
        with torch.device("meta"):
            if part == "unet":
                return UNet2DConditionModel.from_config(dict(config))
            if part == "vae":
                return AutoencoderKL.from_config(dict(config))
            text = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            return text(CLIPTextConfig(**config))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"model {path}: its metadata describes no {part} ({error}); export the model again"
        ) from error


def wrong_shapes(
    file: WeightsFile,
    empty: Mapping[str, nn.Module],
    places: Mapping[str, Mapping[str, Place]],
    names: Mapping[str, str],
) -> Iterator[str]:
    """A line for each tensor in the file whose shape the networks do not have."""
    for part, network in empty.items():
        for key, tensor in network.state_dict().items():
            place = places[part][key]
            wanted, there = place.shape(tensor.shape), file.shapes[names[place.name]]
            plain = place.convolution and there == tuple(tensor.shape)  # a linear layer's
            if there != wanted and not plain:
                yield f"has {place.name} of shape {[*there]}, where {[*wanted]} is right"


def fill_network(
    network: Any,
    file: WeightsFile,
    places: Mapping[str, Place],
    names: Mapping[str, str],
    dtype: torch.dtype,
) -> Any:
    """Give an empty network its weights, of which one tensor at a time is in memory twice.

    names: of each place the tensor in the file. In eval mode, on the CPU.
    """
    state = {}
    for name, keys in stored_as(places).items():
        stored = file.read(names[name])
        for key in keys:
            place = places[key]
            tensor = stored if place.convolution and stored.ndim == 2 else place.read(stored)
            state[key] = tensor.to(dtype, copy=True).contiguous()
    network.load_state_dict(state, assign=True)
    for module in network.modules():  # the one buffer that is not saved
        if getattr(module, "position_ids", None) is not None:
            count = module.position_ids.shape[-1]
            module.register_buffer("position_ids", torch.arange(count)[None], persistent=False)
    return network.eval()
