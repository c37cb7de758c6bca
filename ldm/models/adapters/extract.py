"""A LoRA that comes near what full fine-tuning changed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.adapters.network import Adapter
from ldm.models.adapters.settings import AdapterSettings


@torch.no_grad()
def extract_lora(
    untouched: Mapping[str, nn.Module], trained: Mapping[str, nn.Module], rank: int
) -> tuple[dict[str, Adapter], float]:
    """Put a LoRA into `untouched` networks, of their differences from `trained` ones.

    Of each changed layer's difference the largest `rank` singular values are kept, which is the
    nearest matrix of that rank (Eckart and Young 1936). Also return the relative error: what of
    the change, as a norm over all weights, is not held; norms, biases and embeddings never are.
    UserError: nothing was changed.
    """
    adapters, change, error = {}, 0.0, 0.0
    for name, network in untouched.items():
        before, after = network.state_dict(), trained[name].state_dict()
        differences = {key: after[key].float() - before[key].float() for key in before}
        layers = [
            key
            for key, layer in network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and differences[f"{key}.weight"].any()
        ]
        change += sum(_square(difference) for difference in differences.values())
        held = {layer: differences.pop(f"{layer}.weight") for layer in layers}
        error += sum(_square(difference) for difference in differences.values())
        if layers:
            config = AdapterSettings(rank=rank).peft_config("unet", layers)
            adapters[name] = Adapter(network, config)
            state = adapters[name].state_dict()
            for layer, difference in held.items():
                down, up, lost = factors(difference, rank)
                state[f"{layer}.lora_A.weight"].copy_(down)
                state[f"{layer}.lora_B.weight"].copy_(up)
                error += lost
    if not adapters:
        raise UserError("no layer's weights were changed: there is nothing to extract")
    return adapters, (error / change) ** 0.5


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Of a weight's difference [out, in(, k, k)]: down [rank, in(, k, k)], up [out, rank(, 1, 1)].

    Their product is the nearest of that rank; third, the squared norm of what it leaves out.
    """
    flat = difference.flatten(1)
    left, values, right = torch.linalg.svd(flat, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    down = torch.zeros(rank, flat.shape[1])
    up = torch.zeros(flat.shape[0], rank)
    down[:kept], up[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
    ones = [1] * (difference.ndim - 2)
    shape = (rank, *difference.shape[1:])
    return down.reshape(shape), up.reshape(*up.shape, *ones), _square(values[kept:])


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
