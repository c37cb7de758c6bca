"""Callbacks that write what a run leaves behind, and the one that lets it stop cleanly."""

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from torch import nn

from ldm.checkpoint import list_snapshots, save_snapshot
from ldm.checkpoint.resume import NEWEST
from ldm.training.steps import StepCallback, is_due

log = logging.getLogger(__name__)


class Snapshots(StepCallback):
    """Writes what was trained to RUN/snapshots/step-000400 every so many steps and after the last.

    every: 0 for none. keep: how many of the newest stay (>= 1; None: all); an older one goes only
    after the newer is complete. config: written into each manifest.
    """

    def __init__(
        self,
        run: Path,
        modules: Mapping[str, nn.Module],
        config: Mapping[str, Any],
        every: int,
        keep: int | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(run) / "snapshots"
        self.modules = modules
        self.config = config
        self.every = every
        self.keep = keep

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if not is_due(step, self.every, trainer):
            return
        if trainer.is_global_zero:
            save_snapshot(self.folder, self.modules, self.config, step)
            if self.keep is not None:
                for path in list(list_snapshots(self.folder).values())[: -self.keep]:
                    shutil.rmtree(path)
        trainer.strategy.barrier("snapshot")


class Interrupted(Exception):
    """The user asked to stop before training had begun, or after its end."""


class Interrupt(pl.Callback):
    """Turns the first SIGINT or SIGTERM into a request to stop; a second ends the process at once.

    To stand first in the list of callbacks: it listens while training. What comes before and after
    runs inside `listening()` and calls `check()`. Only the main thread can handle signals;
    elsewhere it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}  # handlers, while training

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside, and give them back. Training may lie inside."""
        before = self._take()
        try:
            yield
        finally:
            self._give_back(before)

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.requested:
            raise Interrupted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = (
            self._take()
        )  # here and not earlier: Lightning puts its own handler in place just before

    def _take(self) -> dict[signal.Signals, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._handle) for number in self.SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = True
        log.warning(
            "%s: finishing what is at hand, saving, then stopping; again to stop at once",
            signal.Signals(number).name,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        self._give_back(self._before)
        self._before = {}

    @staticmethod
    def _give_back(handlers: Mapping[signal.Signals, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class ResumeState(StepCallback):
    """Writes RUN/resume.ckpt every so many steps, after the last, and when asked to stop.

    every: 0 for only when asked to stop. To stand last in the list of callbacks, so that what it
    records (metrics, snapshots) is there already. After `trainer.fit`, `stopped_at` is the step at
    which the run was interrupted, None when it went to its end.
    """

    def __init__(self, run: Path, every: int, interrupt: Interrupt | None = None) -> None:
        super().__init__()
        self.run = Path(run)
        self.every = every
        self.interrupt = interrupt
        self.stopped_at: int | None = None

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        stop = self.interrupt is not None and self.interrupt.requested
        if trainer.world_size > 1:  # a signal may have reached one process only
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or is_due(step, self.every, trainer):
            trainer.save_checkpoint(self.run / NEWEST)
        if stop and step != trainer.max_steps:
            self.stopped_at = step
            trainer.should_stop = True
            if trainer.is_global_zero:
                go_on = f"python main.py --resume {self.run}"
                log.warning("stopped after step %d; go on with: %s", step, go_on)
