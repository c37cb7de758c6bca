"""A callback that acts once per optimizer step, whatever the accumulation; what such share."""

import time
from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError


class StepCallback(pl.Callback):
    """Calls `on_step(trainer, module, step)` after each optimizer step; `step` counts from 1.

    every: of what does its work every so many steps alone, and after the last. spent: seconds in
    `on_step`. took: of them at the last step at which its work was due; None before.
    """

    every = 0
    spent = 0.0
    took: float | None = None

    def __init__(self) -> None:
        self._seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step != self._seen:  # not in the middle of an accumulation
            self._seen = trainer.global_step
            self.act(trainer, pl_module, self._seen)

    def act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """`on_step`, timed."""
        began = time.perf_counter()
        self.on_step(trainer, pl_module, step)
        seconds = time.perf_counter() - began
        self.spent += seconds
        if is_due(step, self.every, trainer):
            self.took = seconds

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """To be overridden."""


def is_due(step: int, every: int, trainer: pl.Trainer) -> bool:
    """Every `every` steps (0: never), and after the last one."""
    return every > 0 and (step % every == 0 or step == trainer.max_steps)


def times_due(first: int, last: int, every: int) -> int:
    """At how many of the steps `first` + 1 .. `last` something `is_due`."""
    if every <= 0 or last <= first:
        return 0
    return last // every - first // every + (last % every > 0)


def share_failure(trainer: pl.Trainer, failure: Exception | None) -> None:
    """Raise what went wrong in the process that writes, in all of them: none waits for another.

    To be called by all processes; `failure` is None in those where nothing went wrong.
    """
    failed = failure is not None
    if trainer.world_size > 1:
        failed = trainer.strategy.reduce_boolean_decision(failed, all=False)
    if failure is not None:
        raise failure
    if failed:
        raise UserError("the process that writes could not; its own message says why")
