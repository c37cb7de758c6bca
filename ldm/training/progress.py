"""How far training is: a bar on a terminal, now and then a log line anywhere else."""

import logging
import math
import time
from datetime import timedelta

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ldm.training.metrics import Metrics
from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)


class TrainingProgress(StepCallback):
    """Step, losses and time left.

    A Rich bar when `console` (default: standard error) is a terminal, else a log line at about
    every tenth of the steps. The numbers are `metrics.latest`; to stand after Metrics.
    """

    def __init__(self, metrics: Metrics, console: Console | None = None) -> None:
        super().__init__()
        self.metrics = metrics
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began, self._first = time.monotonic(), trainer.global_step
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[losses]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
                console=self.console,
            )
            self._task = self._bar.add_task(
                "", total=trainer.max_steps, completed=self._first, losses="", left="-:--:--"
            )
            self._bar.start()

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=step,
                losses=self._losses(),
                left=str(self._left(step, trainer.max_steps)),
            )
        elif step % max(1, math.ceil(trainer.max_steps / 10)) == 0 or step == trainer.max_steps:
            left = self._left(step, trainer.max_steps)
            log.info("step %d/%d, %s, %s left", step, trainer.max_steps, self._losses(), left)

    def _left(self, step: int, steps: int) -> timedelta:
        per_step = (time.monotonic() - self._began) / max(1, step - self._first)
        return timedelta(seconds=round(per_step * (steps - step)))

    def _losses(self) -> str:
        names = {"loss": "loss", "loss/instance": "instance", "loss/prior": "prior"}
        latest = self.metrics.latest
        return " ".join(
            f"{short} {latest[name]:.4f}" for name, short in names.items() if name in latest
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
