"""Linear layers of a frozen base in 8 or 4 bits (QLoRA, arXiv 2305.14314)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.base import BaseModel

Bits = Literal["int8", "nf4"]
BLOCK = 64  # weights that share a scale in nf4, as in section 3 of the paper


class QuantisedLinear(nn.Linear):
    """A linear layer that is not trained, its weight in few bits; `weight` is computed at each use.

    int8: of each output 8 bits a weight and one scale, from its largest weight. nf4: the 16 values
    of arXiv 2305.14314, appendix E, for blocks of 64 weights with a scale each, in the format and
    by the kernels of bitsandbytes. It computes in the type that its weight had: there is no second
    rounding. Gradients flow to its input alone, and the weight is not kept for the backward pass.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bits, self.dtype = bits, layer.weight.dtype
        self.bias = layer.bias
        packed, scale = (_int8 if bits == "int8" else _nf4)(layer.weight.detach())
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], a new tensor."""
        if self.bits == "int8":
            return self.packed.to(self.dtype) * self.scale
        shape = (self.out_features, self.in_features)
        unpack = torch.ops.bitsandbytes.dequantize_4bit
        weight: Tensor = unpack(self.packed, self.scale, BLOCK, "nf4", shape, self.dtype)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        output: Tensor = _Product.apply(input, self)
        return output


class _Product(torch.autograd.Function):
    """As F.linear, which would keep the weight until the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, input.dtype
        return F.linear(input, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.layer.weight).to(ctx.dtype), None


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in], int8, and [out, 1], of the weight's type: what it is rounded by, it is computed
    with."""
    largest = weight.abs().amax(1, keepdim=True)
    scale = (largest / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    packed = (weight.float() / scale.float()).round().clamp(-127, 127)
    return packed.to(torch.int8), scale


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[ceil(out * in / 2), 1], uint8, and [blocks], float32."""
    import bitsandbytes  # noqa: F401  # registers the operations

    pack = torch.ops.bitsandbytes.quantize_4bit
    packed, scale = pack(weight.contiguous(), BLOCK, "nf4", torch.uint8)
    return packed, scale


def quantise(base: BaseModel, bits: Bits) -> None:
    """Put the linear layers of text encoders and UNet into few bits, in place.

    To be done once, after loading and before there are adapters: the same weights give the same
    bits. nf4 needs bitsandbytes.
    """
    for network in base.networks.values():
        quantise_network(network, bits)
    base.bits = bits


def quantise_network(network: nn.Module, bits: Bits) -> None:
    """The linear layers of one network, in place; the others stay as they are."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, QuantisedLinear(layer, bits))


def saved_bytes(network: nn.Module, bits: Bits) -> int:
    """Bytes that `quantise_network` takes off the weights of a network."""
    saved = 0
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            count, size = layer.weight.numel(), layer.weight.element_size()
            scales = size * layer.out_features if bits == "int8" else 4 * -(-count // BLOCK)
            saved += count * size - (count if bits == "int8" else -(-count // 2)) - scales
    return saved
