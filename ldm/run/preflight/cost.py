"""What a run will take: seconds measured on one pass of its own networks, memory, disk."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.config import Config
from ldm.run.device import device_of, kind_of_device
from ldm.run.folder import existing_parent
from ldm.run.memory.prediction import free_bytes, memory_lines, pass_of
from ldm.run.memory.watermark import Need, train_once
from ldm.run.plan import MIB, disk_bytes, missing_class_images, pictures_to_measure
from ldm.run.prepare import Prepared
from ldm.run.trained import set_to_train

LONG = 20.0  # seconds: a pass that takes longer is not timed a second time


@dataclass(frozen=True)
class Cost:
    """seconds: of training, and of drawing class images, grids and what is measured; None: the
    pass does not fit the memory that is free now, so it was not timed."""

    step: float | None
    training: float | None
    drawing: float | None
    memory: list[str]
    disk: str

    @property
    def total(self) -> float | None:
        return None if self.step is None else (self.training or 0) + (self.drawing or 0)


def cost_of(config: Config, ready: Prepared, need: Need, drawn: float | None) -> Cost:
    """Time one forward and backward pass and reckon with it; the optimizer's own work is left out.

    need: predicted memory of training. drawn: measured seconds of one guided sampler step of one
    picture; None: two thirds of a sample's pass are taken, as a backward pass costs about two
    forward ones. `ready` is set to train and its networks are on the device afterwards.
    """
    disk = disk_bytes(config, ready)
    free = shutil.disk_usage(existing_parent(Path(config.logs))).free
    told = f"about {disk / MIB:.0f} MiB of {free / MIB:.0f} free"
    if disk > free:
        told += "; NOT ENOUGH: keep fewer snapshots (snapshots.keep), or set logs="
    memory = memory_lines(config, ready, need)
    seconds = _pass_seconds(config, ready, need)
    if seconds is None:
        return Cost(None, None, None, memory, told)
    step = seconds * config.training.accumulate
    samples = len(pass_of(config, ready).prompts)
    each = drawn if drawn is not None else seconds / samples * 2 / 3
    drawing = _drawing_steps(config, ready) * each
    return Cost(step, step * config.training.steps, drawing, memory, told)


def _pass_seconds(config: Config, ready: Prepared, need: Need) -> float | None:
    device = device_of(None if config.trainer.accelerator == "auto" else kind_of_device(config))
    free, held = free_bytes(device), 0
    if device.type == "cpu":  # the weights lie there already
        held = sum(p.nbytes for part in ready.base.networks.values() for p in part.parameters())
    if free is not None and need.peak - held > free:
        return None
    ready.base.to(device)
    if ready.frozen:
        ready.frozen.to(device)
    trained = set_to_train(config, ready.base, ready.adapters)
    seconds = [0.0, 0.0]
    for turn in range(2):  # the first one warms up
        began = time.perf_counter()
        train_once(ready.base, ready.adapters, ready.frozen, pass_of(config, ready), device)
        for network in trained.values():
            network.zero_grad()
        if device.type != "cpu":  # it computes in the background
            torch.accelerator.synchronize(device)
        seconds[turn] = time.perf_counter() - began
        if seconds[0] > LONG:
            return seconds[0]
    return seconds[1]


def _drawing_steps(config: Config, ready: Prepared) -> int:
    """Sampler steps of all pictures that a run draws."""
    prior, samples, evaluation = config.prior, config.samples, config.evaluation
    steps = missing_class_images(config, ready) * prior.steps if prior else 0
    if samples.every:
        grids = 1 + config.training.steps // samples.every
        steps += grids * len(samples.prompts) * samples.count * config.sampling.steps
    if evaluation:
        pictures = sum(pictures_to_measure(config, ready))
        steps += pictures * (evaluation.steps or config.sampling.steps)
    return steps
