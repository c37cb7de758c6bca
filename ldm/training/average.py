"""A moving average of the weights, kept while training."""

from typing import Any

import pytorch_lightning as pl

from ldm.models.ema import WeightAverage
from ldm.training.optim import weights_to_look_at
from ldm.training.steps import StepCallback


class Average(StepCallback):
    """Keeps a moving average of the weights up to date and in the resume state.

    Of the weights that are the result so far, which a schedule-free optimizer does not train at. A
    step that was skipped leaves it alone: there are no new weights to be averaged.
    """

    def __init__(self, average: WeightAverage) -> None:
        super().__init__()
        self.average = average

    def on_step(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        if not pl_module.guard.skipped:
            with weights_to_look_at(trainer.optimizers[0]):
                self.average.update(step)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average.load_state_dict(state_dict["average"])
