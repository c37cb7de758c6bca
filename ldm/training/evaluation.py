"""Measuring while training, and ending early where that says that no more is to be gained."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch

from ldm.errors import UserError
from ldm.training.callbacks import Interrupted
from ldm.training.metrics import Metrics, fill_rows
from ldm.training.optim import weights_to_look_at
from ldm.training.samples import undisturbed
from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)

# (device, step) -> numbers for metrics.csv, by column, and for the loggers, by metric
Measure = Callable[[torch.device, int], tuple[Mapping[str, float], Mapping[str, float]]]


class Evaluations(StepCallback):
    """Measures every so many steps, with the networks that are being trained.

    measure: makes pictures and numbers; what it has made before, it does not make again. over:
    asked after that, what has been measured up to a step -> why training ends there, or "". It is
    derived from files, so a resumed run ends at the same step. The end is then the run's own, as if
    `training.steps` had said so. To stand after Snapshots, whose snapshot is what is measured, and
    before ResumeState. What was interrupted is done when the run goes on. Any other failure is
    logged, and training goes on.
    """

    def __init__(
        self, run: Path, every: int, metrics: Metrics, measure: Measure, over: Callable[[int], str]
    ) -> None:
        super().__init__()
        self.path = Path(run) / "metrics.csv"
        self.every = every
        self.metrics = metrics
        self.measure = measure
        self.over = over

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step > 0:
            self.on_step(trainer, pl_module, trainer.global_step)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if step % self.every:
            return
        self.metrics.flush(trainer, pl_module)  # all processes: the row is there to be filled
        why = ""
        if trainer.is_global_zero:
            try:
                with undisturbed(pl_module), weights_to_look_at(trainer.optimizers[0]):
                    row, curves = self.measure(pl_module.device, step)
                why = self.over(step)
                fill_rows(self.path, {step: row})
                log_numbers(trainer, {step: curves})
            except Interrupted:
                pass  # ResumeState sees to it
            except Exception as error:
                log.error(
                    "step %d is not measured, training goes on: %s",
                    *(step, error),
                    exc_info=not isinstance(error, UserError),
                )
        if trainer.world_size > 1:  # the others wait here
            why = trainer.strategy.broadcast(why)
        if why and step != trainer.max_steps:
            trainer.fit_loop.epoch_loop.max_steps = step
            if trainer.is_global_zero:
                log.info("training ends early, after step %d: %s", step, why)


def log_numbers(trainer: pl.Trainer, numbers: Mapping[int, Mapping[str, float]]) -> None:
    """Give every logger numbers of some steps, as curves evaluation/<metric>; also after `fit`."""
    for logger in trainer.loggers:
        for step, values in numbers.items():
            named = {f"evaluation/{metric}": value for metric, value in values.items()}
            logger.log_metrics(named, step)
