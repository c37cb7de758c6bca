"""A configuration becomes the module, the data, the callbacks and the Trainer."""

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from torch import nn

from ldm.checkpoint import ResumePoint
from ldm.config import Config, Training, instantiate
from ldm.data.dataset import check_divisible
from ldm.errors import UserError
from ldm.models.base import BaseModel
from ldm.models.ema import WeightAverage
from ldm.models.frozen import FrozenPrediction
from ldm.objective import NoiseSchedule, Objective, ObjectiveSettings
from ldm.run.adapters import identifier_tokens
from ldm.run.data import RunData
from ldm.run.device import precision_of
from ldm.run.folder import is_first_process, read_config, read_facts
from ldm.run.job import Job
from ldm.run.live.loggers import Texts, build_loggers
from ldm.run.live.showing import Live
from ldm.run.measure.one_run import Measuring
from ldm.run.prepare import Prepared, untrained
from ldm.run.resume import end_of
from ldm.run.settings import as_trained, filled, grid_seeds, grid_settings, sampling_settings
from ldm.run.trained import set_to_train
from ldm.sampling.generate import generate
from ldm.sampling.grid import labelled_grid
from ldm.training import (
    Aside,
    Average,
    CompiledBlocks,
    DreamBoothModule,
    Evaluations,
    Interrupt,
    OptimizerSettings,
    Phases,
    Profile,
    ResumeState,
    SampleGrid,
    Snapshots,
    annealed,
    hints,
    make_optimizer,
    make_trainer,
)

log = logging.getLogger(__name__)

MEASURING = timedelta(days=1)  # the longest that processes wait for one another while one measures


def build_job(config: Config, ready: Prepared, run: Path, start: ResumePoint | None = None) -> Job:
    """Put everything together; nothing is written.

    UserError: no such device or strategy, a batch that these devices cannot share equally, an
    objective that this base cannot be trained with.
    """
    modules = set_to_train(config, ready.base, ready.adapters)
    first_steps = config.training.steps
    if start:  # config.yaml is that of the last start; of the first one run.json knows
        first_steps = read_facts(run).get("steps") or read_config(run).training.steps
    module = build_module(config, ready, modules, first_steps)
    interrupt = Interrupt()
    resume_state = ResumeState(run, config.training.save_every, interrupt)
    live = Live(config, ready, run, resume_state, start.step if start else 0)
    measuring = None
    if config.evaluation:
        measuring = Measuring(config, ready, run, interrupt.check, live.counted)
    callbacks = build_callbacks(config, ready, modules, interrupt, live, measuring)
    loggers = build_loggers(config, run, start.step if start else None)
    trainer = build_trainer(config, run, end_of(run, config, start), callbacks, loggers)
    if isinstance(trainer.strategy, DDPStrategy):
        if module.phases.change:
            trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
        if config.evaluation and config.evaluation.every:
            trainer.strategy._timeout = MEASURING  # the others wait for the one that measures
    check_shares(config, trainer.world_size)
    if config.training.fused_backward and trainer.world_size > 1:
        raise UserError(
            f"training.fused_backward=true: trainer.devices={config.trainer.devices} are "
            f"{trainer.world_size} processes, which take the mean of their gradients first; set "
            "trainer.devices=1"
        )
    return Job(
        config=config,
        ready=ready,
        trainer=trainer,
        module=module,
        data=RunData(config, ready, interrupt, live.counted),
        interrupt=interrupt,
        resume_state=resume_state,
        start=start,
        live=live,
        measuring=measuring,
    )


def build_callbacks(
    config: Config,
    ready: Prepared,
    modules: dict[str, nn.Module],
    interrupt: Interrupt,
    live: Live,
    measuring: Measuring | None,
) -> list[pl.Callback]:
    """In the order that they have to stand in."""
    run, metrics, ema = live.run, live.progress.metrics, config.ema
    average = None
    if ema.schedule != "none":
        average = WeightAverage(modules, ema.schedule, ema.decay, ema.power)
    grid = grid_settings(config, ready.base, ready.resolution, run)
    draw = live.timed(grid_drawer(config, ready), len(grid["prompts"]) * len(grid["seeds"]))
    evaluations = []
    if measuring is not None and (every := measuring.section.every):
        own = (measuring.while_training, measuring.over)
        evaluations.append(Evaluations(run, every, metrics, *own))
    return [
        *([Profile(run, profiled_from(config))] if config.profile else []),
        *compiled_blocks(config, run),
        Texts(config),
        Aside(put_aside(config, ready)),
        interrupt,
        metrics,
        live.progress,
        *([Average(average)] if average else []),
        SampleGrid(run, config.samples.every, draw, grid),
        Snapshots(
            run,
            modules,
            asdict(config),
            config.snapshots.every,
            config.snapshots.keep,
            ema=average.state_dict if average else None,
        ),
        *evaluations,
        live.state,
        live,
    ]


def compiled_blocks(config: Config, run: Path) -> list[pl.Callback]:
    """What compiles the UNet's blocks, if anything may."""
    training = config.training
    if training.compile == "never":
        return []
    return [CompiledBlocks(run, training.compile == "always", warm_steps(training))]


def warm_steps(training: Training) -> int:
    """How many steps pass before steps are timed: caches are warm, and all is trained."""
    return round(training.pivotal * training.steps) + 5


def put_aside(config: Config, ready: Prepared) -> dict[str, nn.Module]:
    """What training does not need on the device."""
    networks = {"vae": ready.base.vae, **ready.base.networks}
    return {name: networks[name] for name in untrained(config) if name in networks}


def profiled_from(config: Config) -> int:
    """`warm_steps`. UserError: too few come after them."""
    training = config.training
    warm = warm_steps(training)
    if (needed := warm + Profile.TIMED + Profile.TRACED) > training.steps:
        raise UserError(
            f"profile=true: times {Profile.TIMED + Profile.TRACED} steps after the first {warm}; "
            f"training.steps={training.steps} is too few, give at least {needed}"
        )
    return warm


def check_shares(config: Config, processes: int) -> None:
    """UserError unless every forward pass of every process gets as many samples of either kind."""
    training, prior = config.training, config.prior
    check_divisible("training.batch", training.batch, training.accumulate, processes)
    if prior:
        check_divisible("prior.batch", prior.batch, training.accumulate, processes)


def build_module(
    config: Config, ready: Prepared, modules: dict[str, nn.Module], first_steps: int
) -> DreamBoothModule:
    """The training module. UserError: an objective or optimizer that cannot be.

    first_steps: that the run was started with, whose shares the phases are: raising training.steps
    later must not bring a phase back that is over.
    """
    base, training, prior = ready.base, config.training, config.prior
    settings = asdict(config.objective)
    del settings["caption_dropout"]  # the data's
    schedule = NoiseSchedule.from_scheduler(base.scheduler)
    teacher = None
    if prior and prior.target == "base":
        teacher = teacher_of(ready)
    weights = (prior.weight, prior.weight_end) if prior else (0.0, None)
    phases = phases_of(config, base, first_steps)
    optimizer = optimizer_settings(config)
    for hint in hints(optimizer, phases) if is_first_process(config) else ():
        log.warning("%s", hint)
    return DreamBoothModule(
        modules,
        base.text,
        Objective(schedule, ObjectiveSettings(**settings)),
        optimizer,
        phases=phases,
        prior_weight=lambda step: annealed(*weights, step, training.steps),
        teacher=teacher,
        seed=config.seed,
    )


def teacher_of(ready: Prepared) -> FrozenPrediction:
    """The untouched base's prediction: of what adapters are trained in, without them."""
    if ready.adapters:
        return FrozenPrediction(ready.base, ready.adapters.values())
    assert ready.frozen is not None, "prepare makes it"
    return FrozenPrediction(ready.frozen.with_own_tokenizers())  # a thread may use the other


def phases_of(config: Config, base: BaseModel, first_steps: int) -> Phases:
    """Which parts are trained when."""
    training = config.training
    stop = training.text_encoder_stop
    if training.pivotal and not config.model.train_text_encoder:
        stop = 0.0  # its embedding alone, before all else
    tokens = identifier_tokens(config, base)
    return Phases.of_shares(first_steps, training.pivotal, stop, tokens)


def optimizer_settings(config: Config) -> OptimizerSettings:
    """UserError, naming the keys, where the optimizer does not take its arguments."""
    training = config.training
    name = training.optimizer
    settings = OptimizerSettings(
        learning_rate=training.learning_rate,
        steps=training.steps,
        text_encoder_learning_rate=training.text_encoder_learning_rate,
        pivotal_learning_rate=training.pivotal_learning_rate,
        betas=(training.betas[0], training.betas[1]) if training.betas else None,
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        schedule=training.schedule,
        optimizer=name,
        arguments=training.optimizer_arguments,
        custom=partial(instantiate, name) if ":" in name else None,
        fused_backward=training.fused_backward,
    )
    make_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}], settings)  # before any work
    return settings


def build_trainer(
    config: Config, run: Path, steps: int, callbacks: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    """UserError, naming the section, for hardware that is not there."""
    hardware, training = config.trainer, config.training
    devices = hardware.devices
    try:
        return make_trainer(
            run,
            steps,
            callbacks=callbacks,
            loggers=loggers,
            accumulate=training.accumulate,
            gradient_clip=training.gradient_clip,
            precision=precision_of(config),
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


def grid_drawer(config: Config, ready: Prepared) -> Callable[[torch.device], Image.Image]:
    """A function that draws the sample grid with the networks as they then are: a row a prompt."""
    labels, seeds = filled(config, config.samples.prompts), grid_seeds(config)
    settings = sampling_settings(config, ready.resolution)
    base = ready.base
    if ready.tiny_vae is not None:
        base = replace(base, vae=ready.tiny_vae)

    def draw(device: torch.device) -> Image.Image:
        pictures = list(
            generate(
                as_trained(config, base.to(device)),
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
