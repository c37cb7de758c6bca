"""How far training is: a bar on a terminal, now and then a log line anywhere else."""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

import pytorch_lightning as pl

from ldm.training.display import Bar, Display
from ldm.training.evaluation import Evaluations
from ldm.training.metrics import Metrics
from ldm.training.steps import StepCallback, times_due

WINDOW = 50  # steps whose mean pace is that of those to come


class TrainingProgress(StepCallback):
    """Step, losses and time left.

    On a terminal a bar of `display`, else a log line at about every tenth of the steps, and every
    TEN_MINUTES. The numbers are `metrics.latest`; to stand after Metrics. beyond: seconds that the
    run will take for anything but training's own steps, grids and saves; None: not known.
    """

    TEN_MINUTES = 600.0

    def __init__(
        self,
        metrics: Metrics,
        display: Display | None = None,
        beyond: Callable[[], float | None] = lambda: None,
    ) -> None:
        super().__init__()
        self.metrics = metrics
        self.display = display or Display()
        self.beyond = beyond
        self._held = ExitStack()
        self._bar: Bar | None = None
        self._told = 0.0  # when the last log line was written
        self._busy: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)  # step, seconds up to it

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._told = time.monotonic()
        self._busy.clear()
        if trainer.is_global_zero:
            own = self.display.bar("step", trainer.max_steps, trainer.global_step)
            self._bar = self._held.enter_context(own)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if self._bar is None:
            return
        spent = sum(one.spent for one in step_callbacks(trainer))
        self._busy.append((step, time.perf_counter() - spent))  # from step 1 on: that warms up
        left = self.left(trainer)
        beyond = self.beyond()
        whole = left + beyond if left is not None and beyond else None  # 0: it would be `left`
        told = (step, trainer.max_steps, left, whole, self.losses())
        if self.display.bars is not None:
            self._bar.update(*told)
        elif self._is_due(step, trainer.max_steps):
            self._told = time.monotonic()
            self._bar.tell(*told)

    def left(self, trainer: pl.Trainer) -> float | None:
        """Seconds that the steps to come will take with their grids, snapshots and saves.

        As the newest WINDOW steps took, and the last of each of the others. None before two steps.
        """
        if len(self._busy) < 2:
            return None
        (first, then), (step, now) = self._busy[0], self._busy[-1]
        last = trainer.max_steps
        seconds = (last - step) * (now - then) / (step - first)
        for one in step_callbacks(trainer):
            if one.took is not None and not isinstance(one, Evaluations):  # that is `beyond`
                seconds += one.took * times_due(step, last, one.every)
        return seconds

    def _is_due(self, step: int, steps: int) -> bool:
        tenth = step % max(1, math.ceil(steps / 10)) == 0 or step == steps
        return tenth or time.monotonic() - self._told > self.TEN_MINUTES

    def losses(self) -> str:
        """Those of the newest step, in words; "" before the first."""
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
        self._held.close()
        self._bar = None


def step_callbacks(trainer: pl.Trainer) -> list[StepCallback]:
    """Those of the trainer's callbacks that act once per step."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [one for one in callbacks if isinstance(one, StepCallback)]
