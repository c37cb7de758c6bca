"""How the weights of convolutions lie in memory."""

import torch
from torch import nn


def lay_out(*networks: nn.Module) -> None:
    """Put them channels last, in place.

    So convolutions are faster on CUDA's tensor cores
    (https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html), and drawing is on
    a CPU, where a training step is a little slower (`python -m bench.speed --only formats`). It is
    the same for both: a snapshot that is measured again gives the same numbers to the last bit.
    """
    for network in networks:
        # Not diffusers' own, which warns for nothing.
        nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
