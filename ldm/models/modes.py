"""Networks as they are for looking at, in the middle of training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode, without gradients; afterwards every submodule is as it was."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training
