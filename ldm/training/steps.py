"""A callback that acts once per optimizer step, whatever the accumulation; what such share."""

from typing import Any

import pytorch_lightning as pl

from ldm.errors import UserError


class StepCallback(pl.Callback):
    """Calls `on_step(trainer, module, step)` after each optimizer step; `step` counts from 1."""

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
            self.on_step(trainer, pl_module, self._seen)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """To be overridden."""


def is_due(step: int, every: int, trainer: pl.Trainer) -> bool:
    """Every `every` steps (0: never), and after the last one."""
    return every > 0 and (step % every == 0 or step == trainer.max_steps)


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
