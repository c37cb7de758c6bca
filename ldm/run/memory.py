"""How much memory a training step will need: an estimate.

It counts parameters, gradients, optimizer moments and activations; what the libraries, the
allocator and a device's kernels take beside these is a flat guess, so leave room.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ldm.data.sizes import SIZES
from ldm.models.text import TextEmbedding
from ldm.models.unet import predict

GIB = 2**30
MIB = 2**20
LIBRARIES = GIB // 2  # what Python and the libraries take before anything is loaded
# What gradient checkpointing recomputes: inside these, activations are dropped after the forward.
CHECKPOINTED = ("ResnetBlock2D", "BasicTransformerBlock")


@dataclass
class Activations:
    """Numbers of elements that one forward pass of one sample keeps for the backward pass."""

    all: int  # outputs of every layer
    kept: int  # outputs of checkpointed blocks and of layers outside of them
    largest: int  # layers' outputs within the largest checkpointed block

    def elements(self, gradient_checkpointing: bool) -> int:
        return self.kept + self.largest if gradient_checkpointing else self.all


def unet_activations(unet: Any, resolution: int, factor: int, text_length: int) -> Activations:
    """Count activations of a forward pass on the meta device: no memory, no arithmetic.

    resolution: pixels; factor: pixels per latent; text_length: tokens.
    """
    side = resolution // factor
    with torch.device("meta"):
        copy = type(unet).from_config(unet.config)
        sample = torch.empty(1, unet.config.in_channels, side, side)
        states = torch.empty(1, text_length, unet.config.cross_attention_dim)
        time, sizes, pooled = torch.zeros(1, dtype=torch.long), torch.zeros(1, SIZES), None
        if unet.config.addition_embed_type == "text_time":
            width = unet.config.projection_class_embeddings_input_dim
            pooled = torch.empty(1, width - SIZES * unet.config.addition_time_embed_dim)
    counter = _Counter(copy)
    with torch.no_grad():
        predict(copy, sample, time, TextEmbedding(states, pooled), sizes)
    inside = counter.inside.values()
    total = counter.outside + sum(inside)
    return Activations(total, counter.outside + counter.blocks, max(inside, default=0))


class _Counter:
    """Forward hooks that add up the sizes of layers' outputs."""

    def __init__(self, network: nn.Module) -> None:
        self.outside, self.blocks = 0, 0
        self.inside: dict[str, int] = {}
        blocks = [n for n, m in network.named_modules() if type(m).__name__ in CHECKPOINTED]
        for name, module in network.named_modules():
            block = next((b for b in blocks if name == b or name.startswith(f"{b}.")), None)
            if name == block:
                module.register_forward_hook(self._count_block)
            elif not list(module.children()):
                module.register_forward_hook(self._count_layer(block))

    def _count_block(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.blocks += _numel(output)

    def _count_layer(self, block: str | None) -> Any:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            if block is None:
                self.outside += _numel(output)
            else:
                self.inside[block] = self.inside.get(block, 0) + _numel(output)

        return count


def _numel(output: Any) -> int:
    first = output[0] if isinstance(output, tuple) else output
    return first.numel() if isinstance(first, torch.Tensor) else 0


# Bytes that an optimizer keeps for each trained parameter; Adafactor's rows and columns are few.
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw_8bit": 2,
    "adafactor": 0,
    "prodigy": 16,
    "schedule_free_adamw": 8,
    "lion": 4,
}


def optimizer_bytes(optimizer: str) -> int:
    """Bytes per trained parameter that an optimizer keeps; an unknown one is taken for Adam."""
    return OPTIMIZER_BYTES.get(optimizer, 8)


def training_bytes(
    trained: int, frozen: int, activations: int, precision: str, optimizer: int = 8
) -> int:
    """Memory of a training step.

    trained, frozen: parameters, float32; a trained one also has a gradient and what the optimizer
    keeps (`optimizer` bytes). activations: elements kept in one forward pass of the whole
    micro-batch.
    """
    autocast = precision != "fp32"
    casts = 2 * trained if autocast else 0  # half-precision copies of the weights
    tensors = (8 + optimizer) * trained + 4 * frozen + casts
    return LIBRARIES + tensors + activations * (2 if autocast else 4)
