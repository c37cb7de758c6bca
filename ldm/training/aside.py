"""Networks that no step of training calls lie on the CPU meanwhile."""

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

log = logging.getLogger(__name__)


class Aside(pl.Callback):
    """Moves `networks` to the CPU before a batch, wherever they are by then.

    Class images, cached pictures, grids and measurements need them on the device, and move them
    there; training does not, once pictures are encoded and prompts embedded.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = networks
        self._told = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        moved = [name for name, network in self.networks.items() if _device(network).type != "cpu"]
        for name in moved:
            nn.Module.to(self.networks[name], device="cpu")  # diffusers' own warns for nothing
        if moved and not self._told:
            self._told = True
            log.info("on the CPU while training: %s", ", ".join(moved))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
