"""Adafactor with little kept of convolutions too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError


class Adafactor(torch.optim.Adafactor):
    """Adafactor (arXiv 1804.04235), torch's, with second moments as rows times columns.

    torch's factors the last two axes of a weight. Of a convolution (out, in, height, width) they
    are its few pixels, and what is kept is two thirds of the weight. Here its channels are what is
    factored, in each pixel: (out + in) / (out * in) of the weight, as for a matrix.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One optimizer step; the closure, which calls the networks, comes before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with _channels_factored(p for group in self.param_groups for p in group["params"]):
            super().step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """UserError: the state is of torch's own, which factors convolutions otherwise."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            if parameter.dim() == 4 and "row_var" in state:
                out, _, *pixels = parameter.shape
                if state["row_var"].shape != (*pixels, out, 1):
                    raise UserError(
                        "the state of training.optimizer=adafactor was saved by an earlier version "
                        "that factored convolutions otherwise: start the run anew, or go on with "
                        "the version that began it"
                    )


@contextmanager
def _channels_factored(parameters: Iterator[nn.Parameter]) -> Iterator[None]:
    """Inside, convolutions with gradients are (height, width, out, in); nothing is copied."""
    turned = [p for p in parameters if p.dim() == 4 and p.grad is not None]
    for parameter in turned:
        _turn(parameter)
    try:
        yield
    finally:
        for parameter in turned:
            _turn(parameter)


def _turn(parameter: nn.Parameter) -> None:
    """Exchange the first two axes with the last two, of it and its gradient."""
    gradient: Tensor | None = parameter.grad
    assert gradient is not None
    parameter.grad = None
    parameter.data = parameter.data.permute(2, 3, 0, 1)
    parameter.grad = gradient.permute(2, 3, 0, 1)
