"""How the weights of convolutions lie in memory."""

from collections.abc import Iterable

import torch
from torch import nn


def lay_out_to_draw(*networks: nn.Module) -> None:
    """Channels last, in place: forward passes are faster so, on CPUs as on CUDA's tensor cores.

    https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html, and
    `python -m bench.speed --only formats` for a CPU.
    """
    _lay_out(networks, torch.channels_last)


def lay_out_to_train(network: nn.Module) -> None:
    """Channels last on a machine with CUDA; contiguous on others, where a training step is a little
    faster so (the same command)."""
    cuda = torch.cuda.is_available()
    _lay_out([network], torch.channels_last if cuda else torch.contiguous_format)


def _lay_out(networks: Iterable[nn.Module], to: torch.memory_format) -> None:
    for network in networks:
        # Not diffusers' own, which warns for nothing.
        nn.Module.to(network, memory_format=to)  # type: ignore[call-overload]
