"""Numbers of each optimizer step: metrics.csv and the loggers."""

import csv
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.checkpoint.files import explain_disk_errors, flush, put_in_place, staging_path
from ldm.training.steps import StepCallback

log = logging.getLogger(__name__)

LOSSES = ("loss", "loss/instance", "loss/prior")
COLUMNS = (
    "step",
    *LOSSES,
    "lr/unet",
    "lr/text_encoder",
    "grad_norm",
    "samples_per_second",
    "peak_memory_gib",
    "seconds",
)


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
    On a GPU the numbers wait there and are fetched every tenth step, so that no step waits for
    them. A resumed run drops the rows after the step it goes on from. `latest` holds the newest row
    (empty before the first); a loss that is not finite is warned of once. To stand before the
    callbacks that take long.
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
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clear()
        if trainer.is_global_zero:
            keep_rows(self.path, trainer.global_step)

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
        self._samples += len(batch["prompts"]) * trainer.world_size
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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.flush(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if trainer.world_size == 1:  # else the other processes may not be there to take a mean with
            self.flush(trainer, pl_module)

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
            if not math.isfinite(row["loss"]) and not self._warned:
                self._warned = True
                log.warning(
                    "step %d: the loss is %s; lower the learning rate", row["step"], row["loss"]
                )
            if math.isnan(row["loss/prior"]):
                del row["loss/prior"]  # no class samples
        self.latest = rows[-1]
        if trainer.is_global_zero:
            with explain_disk_errors(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerows(rows)
            for logger in trainer.loggers:
                for row in rows:
                    numbers = {name: value for name, value in row.items() if name != "step"}
                    logger.log_metrics(numbers, step=int(row["step"]))


def keep_rows(path: Path, step: int) -> None:
    """Rewrite metrics.csv with its complete rows up to `step` (0: only the header), staged."""
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            complete = [row for row in csv.reader(file) if len(row) == len(COLUMNS)]
            rows = [row for row in complete if row[0].isdecimal() and int(row[0]) <= step]
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = staging_path(path)
        with staged.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        flush(staged)
        put_in_place(staged, path)
