"""Numbers of each optimizer step: metrics.csv and the loggers."""

import contextlib
import csv
import io
import logging
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.checkpoint.files import flush, staging
from ldm.errors import explain_disk_errors
from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)

LOSSES = ("loss", "loss/instance", "loss/prior")
# Of a step that was evaluated, filled in later; the spaces used stand in evaluation.json.
EVALUATED = (
    "evaluation/fidelity",
    "evaluation/prompt",
    "evaluation/drift",
    "evaluation/diversity",
    "evaluation/identity",
)
COLUMNS = (
    "step",
    *LOSSES,
    "lr/unet",
    "lr/text_encoder",
    "lr/embedding",
    "grad_norm",
    "samples_per_second",
    "peak_memory_gib",
    "seconds",
    *EVALUATED,
)
UNWRITTEN = "metrics_csv"  # in a checkpoint: lines that metrics.csv has yet to get


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on a CUDA or XPU device, else by this process."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).max_memory_allocated(device) / 2**30
    if os.name == "nt":
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Metrics(StepCallback):
    """One row per optimizer step in RUN/metrics.csv (`COLUMNS`), and the same to every logger.

    Losses are means over the step's micro-batches and processes; grad_norm is before clipping;
    samples are instance + class samples; seconds are the step's own, without snapshots and grids.
    On a GPU these numbers wait there and are fetched every tenth step. A resumed run drops the rows
    after the step it goes on from. Rows that the disk has no room for wait, in memory and in the
    resume state, and are written once it has; training goes on. `latest` holds the newest row
    (empty before the first). To stand before the callbacks that take long.
    """

    EVERY_ON_ACCELERATOR = 10

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.path = Path(run) / "metrics.csv"
        self.latest: dict[str, float] = {}
        self._micro: list[Tensor] = []  # [3] losses of each micro-batch of this step
        self._pending: list[tuple[dict[str, float], Tensor]] = []  # rows with losses and norm [4]
        self._rates: dict[str, float] = {}
        self._samples = 0  # in the pending rows
        self._busy = 0.0  # seconds they took
        self._unwritten = ""  # lines that metrics.csv lacks at its end
        self._failing = False  # the last attempt to write them failed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clear()
        if trainer.is_global_zero:
            keep_rows(self.path, trainer.global_step, self._unwritten)
        self._unwritten = ""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._rates = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        parts = [outputs[name].detach().float() for name in LOSSES]
        parts[0] = parts[0] * trainer.accumulate_grad_batches  # Lightning has divided "loss" by it
        self._micro.append(torch.stack(parts))
        self._samples += sum(len(one["prompts"]) for one in batch) * trainer.world_size
        if trainer.global_step != self._seen:
            losses = torch.stack(self._micro).mean(0)  # [3]
            values = torch.cat([losses, pl_module.gradient_norm.reshape(1)])  # [4]
            self._pending.append(({"step": trainer.global_step, **self._rates}, values))
            self._micro = []
        if pl_module.device.type == "cuda" and self._is_full(trainer):
            torch.cuda.current_stream(pl_module.device).synchronize()  # so that the clock is right
        self._busy += time.perf_counter() - pl_module.batch_began
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if pl_module.device.type == "cpu" or self._is_full(trainer):
            self.flush(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.flush(trainer, pl_module)  # the rows up to a resume state are written before it is
        if trainer.is_global_zero:
            self._append(on_disk=True)
            if self._unwritten:
                checkpoint[UNWRITTEN] = self._unwritten

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._unwritten = checkpoint.get(UNWRITTEN, "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.flush(trainer, pl_module)
        if self._unwritten:
            self._append()
        if lines := self._unwritten.splitlines():
            first, last = (line.partition(",")[0] for line in (lines[0], lines[-1]))
            log.warning("%s lacks the rows of steps %s to %s", self.path, first, last)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if trainer.world_size == 1:  # else the other processes may not be there to take a mean with
            try:
                self.flush(trainer, pl_module)
            except Exception as error:  # on a device that is out of order; `exception` says why
                log.error("metrics.csv lacks its last rows: %s", error)

    def _is_full(self, trainer: pl.Trainer) -> bool:
        return len(self._pending) >= self.EVERY_ON_ACCELERATOR or trainer.global_step == 1

    def _clear(self) -> None:
        self._pending, self._samples, self._busy = [], 0, 0.0

    def flush(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fetch the pending rows' numbers from the device and write them everywhere."""
        if not self._pending:
            return
        values = torch.stack([tensor for _, tensor in self._pending])  # [rows, 4]
        values = trainer.strategy.reduce(values, reduce_op="mean")
        common = {
            "samples_per_second": self._samples / max(self._busy, 1e-9),
            "peak_memory_gib": peak_memory_gib(pl_module.device),
            "seconds": self._busy / len(self._pending),
        }
        rows = [
            {**row, **dict(zip((*LOSSES, "grad_norm"), numbers, strict=True)), **common}
            for (row, _), numbers in zip(self._pending, values.tolist(), strict=True)
        ]
        self._clear()
        self._write(trainer, rows)

    def _write(self, trainer: pl.Trainer, rows: list[dict[str, float]]) -> None:
        for row in rows:
            if math.isnan(row["loss/prior"]):
                del row["loss/prior"]  # no class samples
        self.latest = rows[-1]
        if trainer.is_global_zero:
            text = io.StringIO(newline="")
            csv.DictWriter(text, COLUMNS).writerows(rows)
            self._unwritten += text.getvalue()
            self._append()
            for logger in trainer.loggers:
                for row in rows:
                    numbers = {name: value for name, value in row.items() if name != "step"}
                    logger.log_metrics(numbers, step=int(row["step"]))

    def _append(self, on_disk: bool = False) -> None:
        """Write what metrics.csv lacks; where that fails it waits for the next time."""
        try:
            append(self.path, self._unwritten.encode(), on_disk)
        except OSError as error:
            if not self._failing:
                reason = error.strerror or error
                log.warning(
                    "cannot write %s: %s; its rows wait, training goes on", self.path, reason
                )
            self._failing = True
        else:
            self._unwritten, self._failing = "", False


def append(path: Path, lines: bytes, on_disk: bool = False) -> None:
    """Add whole lines to a file that exists, all or none of them; on_disk: and flush them.

    OSError: not written, the file is as it was.
    """
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while lines:  # an almost full disk takes a part
                lines = lines[file.write(lines) :]
            if on_disk:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                file.truncate(end)
            raise


def keep_rows(path: Path, step: int, more: str = "") -> None:
    """Rewrite metrics.csv with its complete rows up to `step` (0: that of the untouched base).

    more: lines that it may lack. UserError: disk not writable; the file is as it was.
    """
    rows = {at: row for at, row in _read_rows(path, more).items() if at <= step}
    _write_rows(path, rows)


def fill_rows(path: Path, numbers: Mapping[int, Mapping[str, float]]) -> None:
    """Put numbers of evaluated steps into the rows of metrics.csv; a row that it lacks is made.

    numbers: step -> column -> number; step 0 is the untouched base. UserError: disk not writable;
    the file is as it was.
    """
    rows = _read_rows(path)
    for step, values in numbers.items():
        rows[step] |= {name: str(value) for name, value in values.items()}
    _write_rows(path, rows)


def _read_rows(path: Path, more: str = "") -> defaultdict[int, dict[str, str]]:
    """The complete rows by step, column -> text; the file's columns may be fewer than ours."""
    written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    header: Iterable[str] = next(csv.reader(written), [])
    rows: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for columns, lines in ((COLUMNS, more.splitlines()), ([*header], written[1:])):
        for row in csv.reader(lines):
            if len(row) == len(columns) and row[0].isdecimal():
                pairs = zip(columns, row, strict=True)
                rows[int(row[0])] |= {name: text for name, text in pairs if text}
    return rows


def _write_rows(path: Path, rows: Mapping[int, Mapping[str, str]]) -> None:
    """Write metrics.csv with these rows in the order of their steps, staged."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging(path) as staged:
            with staged.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
                writer.writeheader()
                writer.writerows({**rows[step], "step": step} for step in sorted(rows))
            flush(staged)
