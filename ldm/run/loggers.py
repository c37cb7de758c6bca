"""Where a run's numbers and grids are shown: TensorBoard and perhaps W&B."""

import re
from dataclasses import asdict
from pathlib import Path

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ldm.config import Config
from ldm.training.loggers import Wandb


def build_loggers(config: Config, run: Path, start: int | None) -> list[Logger]:
    """TensorBoard and perhaps W&B; nothing is written or sent yet.

    start: the step that a resumed run goes on from (None: a new run). TensorBoard forgets what
    comes after it; W&B goes on in the same run, which the run folder's name stands for.
    """
    purge = None if start is None else start + 1
    loggers: list[Logger] = [
        TensorBoardLogger(
            run.parent, name=run.name, version="", default_hp_metric=False, purge_step=purge
        )
    ]
    if config.logger.wandb:
        loggers.append(
            Wandb(
                save_dir=run,
                offline=config.logger.offline,
                project=config.logger.project,
                name=run.resolve().name,
                id=wandb_id(run),
                resume="allow",
                config=asdict(config),
            )
        )
    return loggers


def wandb_id(run: Path) -> str:
    """W&B's id of a run folder: its name, without what W&B does not take in an id."""
    return re.sub(r"[/\\#?%:\s]", "-", run.resolve().name)[:128]
