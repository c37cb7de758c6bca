"""A configuration becomes the module, the data, the callbacks and the Trainer."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from torch import nn

from ldm.checkpoint import ResumePoint
from ldm.config import Config
from ldm.data.dataset import check_divisible
from ldm.errors import UserError
from ldm.models.attention import choose_attention
from ldm.models.base import BaseModel
from ldm.models.trainable import prepare_training
from ldm.objective import NoiseSchedule
from ldm.run.data import RunData
from ldm.run.prepare import Prepared
from ldm.run.settings import filled, grid_seeds, grid_settings, sampling_settings
from ldm.sampling.generate import generate
from ldm.sampling.grid import labelled_grid
from ldm.training import (
    DreamBoothModule,
    Interrupt,
    Interrupted,
    Metrics,
    OptimizerSettings,
    ResumeState,
    SampleGrid,
    Snapshots,
    TrainingProgress,
    make_trainer,
)

log = logging.getLogger(__name__)


@dataclass
class Job:
    """All that `trainer.fit` needs."""

    trainer: pl.Trainer
    module: DreamBoothModule
    data: RunData
    interrupt: Interrupt
    resume_state: ResumeState
    start: ResumePoint | None  # what to go on from

    def fit(self) -> bool:
        """Train. False where the user stopped it before its end."""
        path = self.start.path if self.start else None
        try:
            with self.interrupt.listening():
                self.trainer.fit(
                    self.module, datamodule=self.data, ckpt_path=path, weights_only=True
                )
        except Interrupted:
            run = self.resume_state.run
            log.warning("stopped before training; go on with: python main.py --resume %s", run)
            return False
        return self.resume_state.stopped_at is None


def build_job(config: Config, ready: Prepared, run: Path, start: ResumePoint | None = None) -> Job:
    """Put everything together; nothing is written.

    UserError: no such device or strategy, or a batch that these devices cannot share equally.
    """
    modules = prepare_training(
        ready.base, config.model.train_text_encoder, config.model.gradient_checkpointing
    )
    interrupt, metrics = Interrupt(), Metrics(run)
    resume_state = ResumeState(run, config.training.save_every, interrupt)
    grid = grid_settings(config, ready.base, ready.resolution, run)
    callbacks = [
        interrupt,
        metrics,
        TrainingProgress(metrics),
        SampleGrid(run, config.samples.every, grid_drawer(config, ready), grid),
        Snapshots(run, modules, asdict(config), config.snapshots.every, config.snapshots.keep),
        resume_state,
    ]
    loggers = build_loggers(config, run, start.step if start else None)
    trainer = build_trainer(config, run, callbacks, loggers)
    check_shares(config, trainer.world_size)
    tokens = (ready.resolution // ready.base.latent_factor) ** 2
    choose_attention(ready.base.unet, trainer.strategy.root_device, tokens)
    return Job(
        trainer=trainer,
        module=build_module(config, ready.base, modules),
        data=RunData(config, ready, interrupt),
        interrupt=interrupt,
        resume_state=resume_state,
        start=start,
    )


def check_shares(config: Config, processes: int) -> None:
    """UserError unless every forward pass of every process gets as many samples of either kind."""
    training, prior = config.training, config.prior
    check_divisible("training.batch", training.batch, training.accumulate, processes)
    if prior:
        check_divisible("prior.batch", prior.batch, training.accumulate, processes)


def build_module(
    config: Config, base: BaseModel, modules: dict[str, nn.Module]
) -> DreamBoothModule:
    training = config.training
    first, second = training.betas
    optimizer = OptimizerSettings(
        learning_rate=training.learning_rate,
        steps=training.steps,
        text_encoder_learning_rate=training.text_encoder_learning_rate,
        betas=(first, second),
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        schedule=training.schedule,
    )
    return DreamBoothModule(
        modules,
        base.tokenizer,
        base.text_encoder,
        NoiseSchedule.from_scheduler(base.scheduler),
        optimizer,
        prior_weight=config.prior.weight if config.prior else 0.0,
        min_snr_gamma=training.min_snr_gamma,
        seed=config.seed,
    )


def build_trainer(
    config: Config, run: Path, callbacks: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    """UserError, naming the section, for hardware that is not there."""
    hardware, training = config.trainer, config.training
    devices = hardware.devices
    try:
        return make_trainer(
            run,
            training.steps,
            callbacks=callbacks,
            loggers=loggers,
            accumulate=training.accumulate,
            gradient_clip=training.gradient_clip,
            precision=training.precision,
            hardware={
                "accelerator": hardware.accelerator,
                "devices": int(devices) if devices.lstrip("-").isdecimal() else devices,
                "num_nodes": hardware.nodes,
                "strategy": hardware.strategy,
                "deterministic": hardware.deterministic,
            },
        )
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(
            f"trainer={asdict(hardware)}: {error}; auto, for each of accelerator, devices and "
            "strategy, takes what there is"
        ) from error


def build_loggers(config: Config, run: Path, start: int | None) -> list[Logger]:
    """TensorBoard and perhaps W&B; curves after step `start` (None: a new run) are drawn anew."""
    purge = None if start is None else start + 1
    loggers: list[Logger] = [
        TensorBoardLogger(
            run.parent, name=run.name, version="", default_hp_metric=False, purge_step=purge
        )
    ]
    if config.logger.wandb:
        from pytorch_lightning.loggers import WandbLogger

        loggers.append(
            WandbLogger(
                name=run.name,
                project=config.logger.project,
                save_dir=run,
                offline=config.logger.offline,
                config=asdict(config),
            )
        )
    return loggers


def grid_drawer(config: Config, ready: Prepared) -> Callable[[torch.device], Image.Image]:
    """A function that draws the sample grid with the networks as they then are: a row a prompt."""
    labels, seeds = filled(config, config.samples.prompts), grid_seeds(config)
    settings = sampling_settings(config, ready.resolution)

    def draw(device: torch.device) -> Image.Image:
        pictures = list(
            generate(
                ready.base.to(device),
                [prompt for prompt in labels for _ in seeds],
                seeds * len(labels),
                **settings,
            )
        )
        rows = [
            pictures[start : start + len(seeds)] for start in range(0, len(pictures), len(seeds))
        ]
        return labelled_grid(rows, labels)

    return draw
