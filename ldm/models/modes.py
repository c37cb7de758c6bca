"""Networks as they are for looking at, in the middle of training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode, without gradients; afterwards every submodule is as it was.

    What of them is compiled for training is called as it is written: compiling it once more, for
    these few calls, would take longer.
    """
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad(), _as_written([part for part, _ in before]):
            yield
    finally:
        for part, training in before:
            part.training = training


def _as_written(parts: list[nn.Module]) -> AbstractContextManager[object]:
    if all(part._compiled_call_impl is None for part in parts):
        return nullcontext()  # the other imports much
    return torch.compiler.set_stance("force_eager")
