"""Where a model is put to draw, and in how many bits, so that it fits."""

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.base import BaseModel
from ldm.models.quantised import Bits, quantise_network, saved_bytes
from ldm.run.memory.prediction import GIB, free_bytes
from ldm.run.memory.watermark import drawing_stages
from ldm.sampling.saving import save_memory

log = logging.getLogger(__name__)

PACKAGE = "bitsandbytes"
Memory = Literal["auto", "fast", "small"]


@dataclass(frozen=True)
class Way:
    """How to draw. small: one network on the device at a time; quantized: the UNet's weights."""

    small: bool
    quantized: Bits | None = None


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn at once: sides in pixels (the longer one), pictures, with guidance?"""

    pixels: int
    batch: int
    guided: bool


def check_package(how: Bits) -> None:
    """UserError where what quantises is not installed; int8 needs nothing."""
    if how == "nf4" and importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            f"--quantize {how} needs the package {PACKAGE}: "
            "pip install -c constraints.txt -e '.[quant]', or leave it out"
        )


def place_to_draw(
    base: BaseModel,
    device: torch.device,
    drawing: Drawing,
    memory: Memory,
    how: Bits | None = None,
) -> Way:
    """Put `base`, which lies on the CPU, where it is to draw, and say in the log why so.

    memory: "fast" has all networks on the device, "small" one at a time, "auto" decides by what is
    predicted and what is free; where even one at a time is too much, the UNet is quantised. how:
    it is in any case.
    """
    way = choose_way(base, device, drawing, memory, how)
    if way.quantized:
        quantise_network(base.unet, way.quantized)
    if way.small:
        save_memory(base, device)
    else:
        base.to(device)
    return way


def choose_way(
    base: BaseModel,
    device: torch.device,
    drawing: Drawing,
    memory: Memory,
    how: Bits | None = None,
) -> Way:
    """The first way that fits, or the last one, with a warning; the log says why."""
    ways = [Way(False, how)] if memory != "small" else []
    if memory != "fast":
        ways.append(Way(True, how))
        if how is None:
            ways.append(Way(True, "int8"))
            ways += [Way(True, "nf4")] if importlib.util.find_spec(PACKAGE) else []
    free = free_bytes(device)
    if free is None or len(ways) == 1:
        return ways[0]
    size = drawing.pixels, drawing.batch, drawing.guided
    stages = {small: drawing_stages(base, *size, small) for small in {way.small for way in ways}}
    needs = {way: bytes_to_draw(base, device, stages[way.small], way) for way in ways}
    way = next((way for way in ways if needs[way] <= free), ways[-1])
    if way != ways[0]:
        log.info(
            "about %.1f GiB are needed and %.1f free: %s; a lower --batch needs less",
            *(needs[ways[0]] / GIB, free / GIB, _described(way, device)),
        )
    if needs[way] > free:
        log.warning(
            "that needs about %.1f GiB and may still not fit; draw smaller pictures, or elsewhere",
            needs[way] / GIB,
        )
    return way


def bytes_to_draw(
    base: BaseModel, device: torch.device, stages: Mapping[str, int], way: Way
) -> int:
    """The most that drawing takes on the device beside what is there already, as on a CPU weights.

    stages: of `drawing_stages`, as sliced as the way is small.
    """
    saved = saved_bytes(base.unet, way.quantized) if way.quantized else 0
    if device.type == "cpu":
        return max(0, max(stages.values()) - saved)
    encoders = [_weights(encoder) for encoder in base.text.encoders]
    unet, vae = _weights(base.unet) - saved, _weights(base.vae)
    if not way.small:
        return sum(encoders) + unet + vae + max(stages.values())
    alone = {"text_encoder": max(encoders), "unet": unet, "vae": vae}
    return max(alone[name] + stages[name] for name in stages)


def _weights(network: nn.Module) -> int:
    tensors = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _described(way: Way, device: torch.device) -> str:
    text = f"one network at a time is on {device} (--memory small)"
    if way.quantized:
        text += f", and the UNet's linear layers have weights in {way.quantized} (--quantize)"
    return text
