"""A whole training run on the tiny base, in this process or in processes of its own."""

import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.checkpoint import find_resume
from ldm.data.dataset import Pictures, TrainingSet
from ldm.data.latents import Latents
from ldm.data.sizes import sizes_of_whole
from ldm.models.adapters import AdapterSettings, add_adapters
from ldm.models.base import load_base
from ldm.models.ema import WeightAverage
from ldm.models.trainable import prepare_training
from ldm.objective import NoiseSchedule, Objective, ObjectiveSettings
from ldm.training import (
    Average,
    DreamBoothModule,
    Interrupt,
    Metrics,
    OptimizerSettings,
    Phases,
    ResumeState,
    Snapshots,
    TrainingProgress,
    make_trainer,
)
from tests.forked import Ended, forked, ranks


def latents_of(count: int, seed: int, buckets: bool = False) -> Latents:
    """Random latents of `count` pictures in two variants, squares or of three forms."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(count, 2, 4, 8, 8, generator=generator)
    grids = [(6, 10), (8, 8), (12, 4)] if buckets else [(8, 8)]
    pairs = list(zip(whole, itertools.cycle(grids), strict=False))
    mean = [one.flatten(2)[..., : h * w].reshape(2, 4, h, w) for one, (h, w) in pairs]
    std = [torch.full_like(one, 0.1) for one in mean]
    sizes = torch.stack([sizes_of_whole(4 * h, 4 * w, 2) for _, (h, w) in pairs])
    return Latents(mean, std, sizes, [f"{n}.png" for n in range(count)])


class Kill(pl.Callback):
    """Sends this process a signal after a step, as a user would."""

    def __init__(self, step: int, signals: list[int]) -> None:
        self.step, self.signals = step, signals

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            while self.signals:
                os.kill(os.getpid(), self.signals.pop(0))


class Record(pl.Callback):
    """Writes down what each micro-batch of each process is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batches: Any, *_: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for batch in batches:
            drawn = zip(
                batch["index"].tolist(),
                batch["names"],
                batch["prompts"],
                batch["timesteps"].tolist(),
                batch["noise"].flatten(1).sum(1).tolist(),
                strict=True,
            )
            with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
                for sample in drawn:
                    file.write(json.dumps([batch["step"], *sample]) + "\n")


def build_module(
    base_folder: Path,
    text_encoder: bool = True,
    *,
    objective: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    phases: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    prior_weight: float = 1.0,
    **options: Any,
) -> DreamBoothModule:
    """The module as main.py would build it, with a fast schedule that changes at each step."""
    base = load_base(base_folder)
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "steps": 8,
        "text_encoder_learning_rate": 5e-4,
        "warmup": 2,
        "schedule": "cosine",
        **(optimizer or {}),
    }
    when = Phases(**(phases or {}))
    adapters = {}
    if adapter:
        adapters = add_adapters(base.networks, AdapterSettings(**adapter))
    return DreamBoothModule(
        prepare_training(base, text_encoder, False, embedding=when.pivotal > 0, adapters=adapters),
        base.text,
        Objective(
            NoiseSchedule.from_scheduler(base.scheduler), ObjectiveSettings(**objective or {})
        ),
        OptimizerSettings(**settings),
        phases=when,
        prior_weight=lambda step: prior_weight,
        **options,
    )


def build_data(
    prior: bool = True,
    accumulate: int = 1,
    batch: int = 2,
    buckets: bool = False,
    **options: Any,
) -> TrainingSet:
    prompts = [["a drawing of sks robot", "a photo of sks robot"]] * 3
    classes = Pictures(latents_of(5, 2), [["a drawing of a robot"]] * 5, purpose="class_picture")
    return TrainingSet(
        [Pictures(latents_of(3, 1, buckets), prompts)],
        [classes] if prior else [],
        batch=batch,
        prior_batch=4 if prior else 0,
        accumulate=accumulate,
        seed=7,
        **options,
    )


def train(
    run: Path,
    base_folder: Path,
    steps: int,
    *,
    precision: str = "fp32",
    accumulate: int = 2,
    text_encoder: bool = True,
    prior: bool = True,
    batch: int = 2,
    buckets: bool = False,
    resume: bool = False,
    save_every: int = 100,
    ema: bool = False,
    kill: tuple[int, list[int]] | None = None,
    record: Path | None = None,
    extra: tuple[pl.Callback, ...] = (),
    **options: Any,
) -> tuple[DreamBoothModule, pl.Trainer, ResumeState]:
    """Train on random latents; `options`: the module's, loggers, gradient_clip, hardware."""
    kept = {name: options.pop(name) for name in ("loggers", "gradient_clip") if name in options}
    hardware = options.pop("hardware", {"accelerator": "cpu", "devices": 1})
    module = build_module(base_folder, text_encoder, seed=7, **options)
    point = find_resume(run) if resume else None
    metrics, interrupt = Metrics(run), Interrupt()
    average = WeightAverage(dict(module.trained.items())) if ema else None
    state = ResumeState(run, save_every, interrupt)
    callbacks = [
        interrupt,
        metrics,
        TrainingProgress(metrics),
        *([Average(average)] if average else []),
        *extra,
        Snapshots(
            run,
            dict(module.trained.items()),
            {"seed": 7},
            save_every,
            keep=2,
            ema=average.state_dict if average else None,
        ),
        *([Kill(*kill)] if kill else []),
        *([Record(record)] if record else []),
        state,
    ]
    trainer = make_trainer(
        run,
        steps,
        callbacks=callbacks,
        accumulate=accumulate,
        precision=precision,
        hardware=hardware,
        **kept,
    )
    place = {"rank": trainer.global_rank, "world": trainer.world_size}
    data = build_data(
        prior, accumulate, batch, buckets, start_step=point.step if point else 0, **place
    )
    loader = DataLoader(data, batch_size=None)
    trainer.fit(module, loader, ckpt_path=point.path if point else None)
    return module, trainer, state


def train_all(base: Path, jobs: tuple[dict[str, Any], ...]) -> None:
    """One job after the other, each the arguments of `train`, with what is logged on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for job in jobs:
        train(base_folder=base, **job)


def run_jobs(base: Path, *jobs: dict[str, Any], processes: int = 1) -> Ended:
    """`train_all` in a process of its own, or in several that train together."""
    return forked(train_all, base, jobs, told=ranks(processes))
