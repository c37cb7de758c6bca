"""How convolutions lie in memory."""

import torch
from torch import nn


def lay_out(*networks: nn.Module) -> None:
    """Put the weights of convolutions channels last where the machine has CUDA, in place.

    Its tensor cores take them so
    (https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html). On CPUs they stay
    contiguous, as they are loaded: `python -m bench.speed --only formats` has training and drawing
    in both.
    """
    if torch.cuda.is_available():
        for network in networks:
            # Not diffusers' own, which warns for nothing.
            nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
