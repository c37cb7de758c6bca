"""Where the time of a training step goes: a table and a trace."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)

Part = Callable[[str], AbstractContextManager[None]]
TABLE, TRACE = "profile.md", "profile.json.gz"
# What a part is called -> what it is.
PARTS = {
    "data": "batches, their noise and timesteps, to the device",
    "text encoder": "forward",
    "UNet": "forward",
    "frozen base": "what it predicts for class samples",
    "backward": "of all",
    "clipping": "norm of the gradients, and clipping",
    "optimizer": "its step, and Lightning's around it",
    "rest": "targets, losses, what Lightning does",
    "logging": "metrics.csv and loggers, averages, grids, snapshots",
}


def untimed(name: str) -> AbstractContextManager[None]:
    """A part that nobody times."""
    return nullcontext()


class Stopwatch:
    """Times parts, `with stopwatch("UNet"):`; seconds are without those of parts inside.

    What a device does is waited for where a part begins and ends: kernels count where they were
    asked for, and the whole is a little slower than untimed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inside = [0.0]  # of each open part, seconds of the parts within
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = self.now()
        self._inside.append(0.0)
        try:
            with torch.profiler.record_function(name):
                yield
        finally:
            taken = self.now() - began
            self.seconds[name] += taken - self._inside.pop()
            self._inside[-1] += taken

    def now(self) -> float:
        """Seconds, once the device has done what it was asked for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Profile(StepCallback):
    """RUN/profile.md: seconds of each part of a step, means over TIMED steps that begin after
    `warm` of them; RUN/profile.json.gz: a trace of TRACED more (chrome://tracing, Perfetto).

    To stand before all other callbacks.
    """

    TIMED, TRACED = 10, 2

    def __init__(self, run: Path, warm: int) -> None:
        super().__init__()
        self.run = Path(run)
        self._warm = warm
        self._watch: Stopwatch | None = None
        self._first = -1  # the step after which timing began
        self._started = self._ended = 0.0  # of a micro-batch: its forward pass, its end
        self._tracer: torch.profiler.profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._warm = max(self._warm, trainer.global_step + 2)  # a resumed run is cold too

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is not None:
            self._started = self._watch.now()
            seconds, began = self._watch.seconds, pl_module.batch_began
            seconds["data"] += self._started - began
            seconds["logging"] += began - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is not None:
            self._ended = self._watch.now()
            self._watch.seconds["all"] += self._ended - self._started
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        if not trainer.is_global_zero:
            return
        if self._watch is None and self._first < 0 and step >= self._warm:
            self._first, self._watch = step, Stopwatch(pl_module.device)
            pl_module.part, self._ended = self._watch, self._watch.now()
        elif self._watch is not None and step == self._first + self.TIMED:
            self._write(pl_module)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells that it starts and stops
            self._tracer = torch.profiler.profile()
            self._tracer.start()
        elif self._tracer is not None and step == self._first + self.TIMED + self.TRACED:
            self._stop(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self._tracer is not None:  # a run that ends while it is traced
            self._stop(pl_module)

    def _stop(self, pl_module: Any) -> None:
        assert self._tracer is not None
        self._tracer.stop()
        self._tracer.export_chrome_trace(str(self.run / TRACE))
        self._tracer = self._watch = None
        pl_module.part = untimed
        log.info("profile: %s, and %s for a trace viewer", self.run / TABLE, TRACE)

    def _write(self, pl_module: Any) -> None:
        assert self._watch is not None
        seconds = dict(self._watch.seconds)
        inside = [name for name in seconds if name not in ("all", "data", "logging")]
        seconds["rest"] = seconds.pop("all") - sum(seconds[name] for name in inside)
        lines = _table({name: total / self.TIMED for name, total in seconds.items()})
        for line in lines[2:]:
            log.info("%s", line)
        text = f"# Where a step's time goes\n\nMeans over {self.TIMED} steps.\n\n"
        (self.run / TABLE).write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


def _table(seconds: dict[str, float]) -> list[str]:
    """seconds: of each part, of a step."""
    whole = sum(seconds.values())
    lines = ["| part | ms | share | |", "|---|---:|---:|---|"]
    lines += [
        f"| {name} | {1000 * seconds[name]:.1f} | {seconds[name] / whole:.0%} | {what} |"
        for name, what in PARTS.items()
        if name in seconds
    ]
    return [*lines, f"| **step** | {1000 * whole:.1f} | | |"]
