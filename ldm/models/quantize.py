"""Linear layers whose weights take 8 or 4 bits."""

from typing import Any, Literal

import torch
from torch import nn

Quantized = Literal["int8", "nf4"]
THRESHOLD = 6.0  # of an input's outliers, which int8 leaves alone: arXiv 2208.07339, section 3.2


def quantize(network: nn.Module, how: Quantized, dtype: torch.dtype) -> None:
    """Quantise every `nn.Linear` of a network, in place; all its other weights go to `dtype`.

    "int8": a scale for each row of weights and of inputs (LLM.int8(), arXiv 2208.07339); "nf4":
    quantiles of a normal distribution, a scale for every 64 weights, itself in 8 bits (QLoRA,
    arXiv 2305.14314). Weights are rounded by the next `network.to(device)`, "cpu" as well; what
    int8 has rounded cannot be moved to another device any more. They take no gradients.
    """
    nn.Module.to(network, dtype=dtype)  # diffusers' own warns for nothing
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, _quantized(layer, how))


def saved_bytes(network: nn.Module, how: Quantized) -> int:
    """Bytes that `quantize` takes off the weights of a network, whose dtype stays."""
    saved = 0.0
    for layer in network.modules():
        if type(layer) is nn.Linear:
            count = layer.weight.numel()
            # A scale for each row in 4 bytes, for each 64 weights in one and a little.
            left = count + 4 * layer.out_features if how == "int8" else count / 2 + count / 64
            saved += count * layer.weight.element_size() - left
    return round(saved)


def _quantized(layer: nn.Linear, how: Quantized) -> nn.Module:
    import bitsandbytes

    sizes, weight = (layer.in_features, layer.out_features), layer.weight.data
    options: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    made: nn.Module
    if how == "int8":
        options |= {"has_fp16_weights": False, "threshold": THRESHOLD}
        made = bitsandbytes.nn.Linear8bitLt(*sizes, **options)
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False)
    else:
        options |= {"compute_dtype": weight.dtype, "quant_type": how}
        made = bitsandbytes.nn.Linear4bit(*sizes, **options)
        made.weight = bitsandbytes.nn.Params4bit(weight, False, quant_type=how, module=made)
    made.bias = layer.bias
    return made.train(layer.training).requires_grad_(False)
