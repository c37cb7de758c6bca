"""The Lightning Trainer as this training needs it."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ldm.checkpoint import ResumeIO
from ldm.training.loggers import Guarded
from ldm.training.ranks import watch_ranks

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


def make_trainer(
    run: Path,
    steps: int,
    *,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger] = (),
    accumulate: int = 1,
    gradient_clip: float | None = None,
    precision: str = "fp32",
    hardware: Mapping[str, Any] | None = None,
) -> pl.Trainer:
    """A Trainer of `steps` optimizer steps of `accumulate` micro-batches each.

    precision: fp32 | bf16-mixed | 16-mixed (on a CPU, Lightning makes bf16 of it; a log line says
    so). hardware: passed on to the Trainer (accelerator, devices, num_nodes, strategy,
    deterministic). callbacks keep their order: Interrupt, Metrics, TrainingProgress, SampleGrid,
    Snapshots, ResumeState. A logger that fails is dropped, a process that dies ends the others
    (`Guarded`, `watch_ranks`). Go on with `trainer.fit(module, loader, ckpt_path=point.path)`.
    """
    _quieten_lightning()
    trainer = pl.Trainer(
        default_root_dir=run,
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=[Guarded(logger) for logger in loggers] or False,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=gradient_clip,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
        plugins=[ResumeIO(), *_slurm()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **(hardware or {}),
    )
    if trainer.world_size == 1:
        # Lightning has read it from RANK and the like, which may stand for something else.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    watch_ranks(trainer, run)
    if precision == "16-mixed" and trainer.precision == "bf16-mixed":
        log.warning("training.precision=16-mixed: this device has no 16-mixed, bf16-mixed is used")
    return trainer


def _slurm() -> list[SLURMEnvironment]:
    """SLURM's environment where Lightning would take it, but not its auto-requeue: that queues the
    first command once more, which would start a run anew, and goes on training meanwhile."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def _quieten_lightning() -> None:
    """No banners, tips and hints that do not apply here; its warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for hint in (
        ".*does not have many workers.*",
        ".*AMP with fp16 is not supported on CPU.*",
        ".*lr_scheduler.step\\(\\)` before `optimizer.step.*",  # where a scaler skips
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=hint)
