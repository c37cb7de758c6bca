"""Callbacks that write what a run leaves behind, and the one that lets it stop cleanly."""

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from ldm.checkpoint import chosen_steps, has_snapshot, prune_snapshots, save_snapshot
from ldm.checkpoint.resume import NEWEST, PREVIOUS, what_is_lost
from ldm.checkpoint.tensors import tensor_bytes
from ldm.errors import UserError
from ldm.training.optim import weights_to_look_at
from ldm.training.room import state_bytes, warn_of_little_room
from ldm.training.steps import StepCallback, is_due, share_failure

log = logging.getLogger(__name__)

AT_ONCE = 3  # resume states on the disk: the newest, the one before, and one while it is written

AveragedWeights = Mapping[str, Mapping[str, Tensor]]  # module -> key in its state dict -> tensor


class Snapshots(StepCallback):
    """Writes what was trained to RUN/snapshots/step-000400 every so many steps and after the last.

    every: 0 for none. keep: how many of the newest stay (>= 1; None: all), beside those that the
    run's evaluations chose; an older one goes only after the newer is complete. config: written
    into each manifest. ema: called for the averaged weights that are written beside the weights,
    which are those to look at (an optimizer may train others). Where a run goes on at its end, its
    last snapshot is written again if it is missing or damaged.
    """

    def __init__(
        self,
        run: Path,
        modules: Mapping[str, nn.Module],
        config: Mapping[str, Any],
        every: int,
        keep: int | None = None,
        *,
        ema: Callable[[], AveragedWeights] | None = None,
    ) -> None:
        super().__init__()
        self.run = Path(run)
        self.folder = self.run / "snapshots"
        self.modules = modules
        self.config = config
        self.every = every
        self.keep = keep
        self.ema = ema

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if not is_due(step, self.every, trainer):
            return
        failure = None
        if trainer.is_global_zero:
            try:
                self._write(trainer, step)
            except Exception as error:
                failure = error
        share_failure(trainer, failure)  # the other processes wait here

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if self._seen == step or not trainer.is_global_zero:
            return  # a step was made, and its snapshot
        if is_due(step, self.every, trainer) and not has_snapshot(self.folder, step):
            log.warning("the snapshot of step %d is missing or damaged: it is written again", step)
            self._write(trainer, step)

    def _write(self, trainer: pl.Trainer, step: int) -> None:
        try:
            with weights_to_look_at(trainer.optimizers[0]):
                save_snapshot(self.folder, self.modules, self.config, step, self.averaged())
            if self.keep is not None:
                prune_snapshots(self.folder, self.keep, step, chosen_steps(self.run))
        except UserError as error:  # training ends here, without a resume state of this step
            raise UserError(f"{error}; {what_is_lost(self.run, step)}") from error

    def size(self) -> int:
        """Bytes of one snapshot on the disk, but for its manifest."""
        averaged = self.averaged().keys()
        sizes = {name: tensor_bytes(part.state_dict()) for name, part in self.modules.items()}
        return sum(size * (2 if name in averaged else 1) for name, size in sizes.items())

    def averaged(self) -> AveragedWeights:
        return self.ema() if self.ema else {}


class Interrupted(Exception):
    """The user asked to stop while no step was at hand: before, after or between steps."""


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
        # Here and not earlier: Lightning puts its own handler in place just before.
        self._before = self._take()

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
    """Writes RUN/resume.ckpt every so many steps, after the last, and when training is to stop.

    It is to stop when the user asks for it, or when `trainer.should_stop` is set by whatever in
    whichever process. every: 0 for only then. To stand after all callbacks that write something, so
    that what it records (metrics, snapshots) is there already. After `trainer.fit`, `stopped_at` is
    the step at which the run was stopped, None when it went to its end; `saved` is the last step
    that was saved. Before the first step it warns where the disk has no room for the next state and
    snapshot.

    What ends training by an exception has the last complete step saved: `Interrupted`, and where no
    other process has to take part any other. `failure` is what prevented that.
    """

    def __init__(self, run: Path, every: int, interrupt: Interrupt | None = None) -> None:
        super().__init__()
        self.run = Path(run)
        self.every = every
        self.interrupt = interrupt
        self.stopped_at: int | None = None
        self.failure: Exception | None = None
        self._stop = False  # by `trainer.should_stop`
        self._complete = -1  # the last step with which all callbacks were through; -1: not training
        self.saved = 0  # the last step that was saved

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count anew, to what Lightning has when it saves after a step.

        `training.accumulate` may be another than it was, and the state may have been saved when the
        next step had begun.
        """
        steps, loop = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        done = steps * trainer.accumulate_grad_batches
        optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for which in ("total", "current"):
            batches = loop["epoch_loop.batch_progress"][which]  # the last is not yet completed
            batches.update(ready=done, started=done, processed=done, completed=done - 1)
            optimizer["step"][which].update(ready=steps, completed=steps)
            optimizer["zero_grad"][which].update(ready=steps, started=steps, completed=steps)
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._complete = self.saved = trainer.global_step
        if trainer.is_global_zero:
            state, snapshot = state_bytes(pl_module, trainer.optimizers), 0
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            for snapshots in [one for one in callbacks if isinstance(one, Snapshots)]:
                averages = snapshots.averaged().values()  # these are in the state as well
                state += sum(map(tensor_bytes, averages))
                snapshot += snapshots.size()
            there = sum((self.run / name).exists() for name in (NEWEST, PREVIOUS))
            saves = math.ceil((trainer.max_steps - trainer.global_step) / max(1, self.every))
            more = min(AT_ONCE, there + saves) - there
            warn_of_little_room(self.run, more * state + snapshot)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning would stop within an accumulation, where there is nothing to be saved yet.
        self._stop, trainer.should_stop = self._stop or trainer.should_stop, False
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        stop = self._stop or (self.interrupt is not None and self.interrupt.requested)
        if trainer.world_size > 1:  # a signal may have reached one process only
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or is_due(step, self.every, trainer):
            self._save(trainer)
        self._complete = step  # not where saving failed: it is not tried again then
        if stop and step != trainer.max_steps:
            trainer.should_stop = True
            self._stopped(trainer, step)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last complete step; nothing is raised, so that `exception` is what is shown."""
        interrupted, step = isinstance(exception, Interrupted), trainer.global_step
        if not (interrupted or trainer.world_size == 1 and isinstance(exception, Exception)):
            return  # the others are not here, or the process has to go at once
        if step != self._complete:
            return  # not training, or not all that belongs to this step is there
        if not getattr(pl_module, "weights_are_whole", True):
            log.warning("step %d was half done: not saved", step + 1)
            return
        is_new = step > self.saved
        try:
            if is_new:
                self._save(trainer)
        except Exception as error:
            self.failure = error
            if not interrupted:  # else it is all that went wrong, and up to the caller
                log.error("the steps from %d on are lost: %s", self.saved + 1, error)
            return
        if interrupted and step > 0:
            self._stopped(trainer, step)
        elif is_new:
            log.warning("saved after step %d; go on with: %s", step, self._go_on)

    def _stopped(self, trainer: pl.Trainer, step: int) -> None:
        self.stopped_at = step
        if trainer.is_global_zero:
            log.warning("stopped after step %d; go on with: %s", step, self._go_on)

    @property
    def _go_on(self) -> str:
        return f"python main.py --resume {self.run}"

    def _save(self, trainer: pl.Trainer) -> None:
        failure = None
        try:
            trainer.save_checkpoint(self.run / NEWEST)
            self.saved = trainer.global_step
        except Exception as error:
            failure = error
            trainer.strategy.barrier("resume state")  # where the others wait within the call
        share_failure(trainer, failure)
