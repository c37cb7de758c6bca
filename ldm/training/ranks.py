"""Processes that train together end together: none waits for one that is no longer there.

Lightning starts the other processes of a machine from the first one. In its own hands the death of
one kills the first without a word, and those that the first leaves behind wait in a collective for
as long as the backend's timeout is (half an hour). torchrun and SLURM watch processes themselves.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from ldm.training.callbacks import Interrupt, Interrupted

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
GRACE_SECONDS = 15.0  # in which a process that has to end may do so by itself
STOPPED_EARLY = "stopped before training; go on with: python main.py --resume %s"
STOPS = (0, 130, -signal.SIGINT, -signal.SIGTERM)  # of a process that was asked to stop early
# In the environment of the processes that Lightning starts:
FIRST = "DREAMBOOTH_FIRST_PROCESS"  # the pid of the one that started them
RUN = "DREAMBOOTH_RUN"  # the run folder, whose name is of a time that only that one knows


def watch_ranks(trainer: pl.Trainer, run: Path) -> None:
    """Have `trainer.fit` end, in every process, when one of them ends before its time.

    The others say which one it was and end with status 1, within about GRACE_SECONDS. An exception
    ends the processes beside it in the same way, and is itself shown as always. Where the user
    asked to stop before training, no process is to blame and the status is 0.
    """
    launcher, callbacks = trainer.strategy.launcher, trainer.callbacks  # type: ignore[attr-defined]
    if type(launcher) is _SubprocessScriptLauncher:
        interrupt = next((one for one in callbacks if isinstance(one, Interrupt)), None)
        watching = trainer.strategy._launcher = WatchingLauncher(launcher, run, interrupt)
        callbacks.append(SameRun(watching))


class SameRun(pl.Callback):
    """Has all processes name the run folder of rank 0, also where torchrun or SLURM started them.

    These have computed names of their own until now; nothing but messages has used them.
    """

    def __init__(self, launcher: "WatchingLauncher") -> None:
        self.launcher = launcher

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.launcher.run = Path(trainer.strategy.broadcast(str(self.launcher.run)))


class WatchingLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of processes on one machine, with watchers of our own."""

    def __init__(
        self, launcher: _SubprocessScriptLauncher, run: Path, interrupt: Interrupt | None = None
    ) -> None:
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self.run, self.interrupt = run, interrupt
        self.children: list[subprocess.Popen] = []  # ranks 1, 2, ... of this machine
        self._first = int(os.environ.get(FIRST, 0))  # of a child: the process that started it
        self._trainer: pl.Trainer | None = None
        self._said = threading.Lock()  # taken by whoever says first why all has to end
        self._over = threading.Event()  # training came to its end, or ends with an exception

    def launch(
        self, function: Callable, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> Any:
        """Start the other processes, watch them, and run `function`."""
        self._trainer = trainer
        threading.Thread(target=self._watch, daemon=True, name="rank-watcher").start()
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except BaseException as error:
            if self.num_processes * self.num_nodes > 1 and not self._all_stop(error):
                self._leave(error)
            raise
        finally:
            self._over.set()

    def kill(self, signum: Any) -> None:
        """Send a signal to the processes that this one started."""
        for child in self.children:
            child.send_signal(signum)

    def _call_children_scripts(self) -> None:
        told = {FIRST: str(os.getpid()), RUN: str(self.run)}
        os.environ.update(told)
        try:
            super()._call_children_scripts()
        finally:
            for name in told:
                del os.environ[name]
        # Lightning's observer, which watches `procs`, would kill this process before it can speak.
        self.children, self.procs = self.procs, []

    def _watch(self) -> None:
        """In a thread: end this process soon after one that it cannot do without has ended."""
        while not self._over.wait(POLL_SECONDS):
            if lost := self.lost():
                stopped = self._is_stopped_early()
                if not stopped:
                    self._say(lost)
                # Before the processes have met, nothing is at hand, and this one waits in vain.
                met = torch.distributed.is_initialized()
                if not self._over.wait(GRACE_SECONDS if self.children and met else 0):
                    if stopped:
                        log.warning(STOPPED_EARLY, self.run)
                    self._end_children()
                    os._exit(0 if stopped else 1)
        for child in self.children:
            child.wait()  # so that no zombie is left while this process measures and reports

    def lost(self) -> str | None:
        """Which process is gone, and how; None where all are there."""
        if self._first and os.getppid() != self._first:
            return "the first process is gone"
        for rank, child in enumerate(self.children, start=1):
            status = child.poll()
            if status or (status == 0 and not self._is_complete()):
                return f"the process of rank {rank} (pid {child.pid}) {how_it_ended(status)}"
        return None

    def _is_complete(self) -> bool:
        """Whether the others may have ended: this process, too, has trained to the end."""
        trainer = self._trainer
        return trainer is None or trainer.should_stop or trainer.global_step >= trainer.max_steps

    def _has_trained(self) -> bool:
        return self._trainer is not None and self._trainer.global_step > 0

    def _is_stopped_early(self) -> bool:
        """Whether the user asked to stop before training. This process may not have heard of it:
        the signal reached another one only, or this one waits in a call that lets none through."""
        if self._has_trained():
            return False
        ended = [status for child in self.children if (status := child.poll()) is not None]
        asked = self.interrupt is not None and self.interrupt.requested
        return asked or bool(ended) and all(status in STOPS for status in ended)

    def _all_stop(self, error: BaseException) -> bool:
        """Whether all processes end with this error, after saving together: the user asked for it
        in the middle of training. Before that a signal may have reached one of them only."""
        return self._has_trained() and isinstance(error, Interrupted)

    def _leave(self, error: BaseException) -> None:
        """This process ends with `error`: so do those beside it. Interrupted or SystemExit where
        it is not to blame: the traceback of a broken connection tells nobody anything."""
        lost = self._lost_soon() if is_broken_connection(error) else None
        stopped = isinstance(error, Interrupted) or lost is not None and self._is_stopped_early()
        # Some backends hang at the end.
        deadline = threading.Timer(GRACE_SECONDS, os._exit, [0 if stopped else 1])
        deadline.daemon = True
        deadline.start()
        if lost and not stopped:
            self._say(lost)
        # From here on the others end because this one does: nothing for the watcher to tell of.
        self._said.acquire(blocking=False)
        self._over.set()
        self._end_children()
        if lost:
            raise (Interrupted() if stopped else SystemExit(1)) from error

    def _lost_soon(self) -> str:
        """As `lost`; a connection breaks a little before its process has ended."""
        until = time.monotonic() + 5
        while time.monotonic() < until and not self._is_stopped_early():
            if lost := self.lost():
                return lost
            time.sleep(POLL_SECONDS)
        return "another process is gone, its own message says why"

    def _say(self, lost: str) -> None:
        if self._said.acquire(blocking=False):
            log.error(
                "%s, so training stops; go on from the last save: python main.py --resume %s",
                *(lost, self.run),
            )

    def _end_children(self) -> None:
        """Ask them, then force them: one that waits in a collective cannot hear."""
        for child in self.children:
            child.send_signal(signal.SIGTERM)
        until = time.monotonic() + 2
        for child in self.children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def is_broken_connection(error: BaseException) -> bool:
    """Whether the backend of the collectives (gloo, NCCL) lost another process."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def how_it_ended(status: int) -> str:
    """A child's return code in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}, its own message says why"
