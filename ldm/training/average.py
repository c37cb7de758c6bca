"""Weights to look at instead of those that the next step starts from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.models.ema import WeightAverage
from ldm.training.steps import StepCallback


class Average(StepCallback):
    """Keeps a moving average of the weights up to date and in the resume state.

    A step that was skipped leaves it alone: there are no new weights to be averaged.
    """

    def __init__(self, average: WeightAverage) -> None:
        super().__init__()
        self.average = average

    def on_step(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        if not pl_module.guard.skipped:
            self.average.update(step)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.load_state_dict(state_dict["average"])


@contextmanager
def weights_to_look_at(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the weights are those that the optimizer says are the result so far.

    A schedule-free optimizer (arXiv 2405.15682) trains at a point y and means the average x; its
    own way there and back rounds, so y is kept and put back: looking changes nothing. For any other
    optimizer nothing happens.
    """
    if not callable(getattr(optimizer, "eval", None)):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().clone() for weight in weights]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
