"""The learning rate of each group in each step."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.optim.lr_scheduler import LambdaLR

from ldm.training.optim import OptimizerSettings
from ldm.training.phases import THROUGHOUT, Phases


def rate_factor(step: int, settings: OptimizerSettings) -> float:
    """What the learning rate is multiplied by in optimizer step `step` (0 is the first), in (0, 1].

    It rises to 1 over the warm-up, (step + 1) / warmup so that no step is wasted at rate 0, then
    stays (constant) or falls to 0 at the end of training, straight or as half a cosine
    (arXiv 1608.03983, equation 5).
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    remaining = max(0.0, 1 - progress)
    if settings.schedule == "linear":
        return remaining
    return 0.5 * (1 - math.cos(math.pi * remaining))


def group_factor(group: str, step: int, settings: OptimizerSettings, phases: Phases) -> float:
    """What a group's first rate is multiplied by in step 0, 1, ...; 0 while it is not trained."""
    if not phases.trains(group, step):
        return 0.0
    if step < phases.pivotal:  # the embedding alone, at its own constant rate
        return settings.pivotal_learning_rate / settings.text_rate
    return rate_factor(step - phases.pivotal, settings)


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, phases: Phases = THROUGHOUT
) -> LambdaLR:
    """Learning-rate schedule, stepped once per optimizer step; each group as in `group_factor`.

    Warm-up and schedule begin after the steps that train the embedding alone.
    """
    after = replace(settings, steps=settings.steps - phases.pivotal)

    def factor_of(group: str) -> Callable[[int], float]:
        return lambda step: group_factor(group, step, after, phases)

    return LambdaLR(optimizer, [factor_of(group["name"]) for group in optimizer.param_groups])


def set_rates(schedule: LambdaLR) -> None:
    """Give the optimizer the rates of the step that its schedule is at.

    A saved optimizer has those of the schedule that it was saved under, which more steps stretch.
    """
    groups = schedule.optimizer.param_groups
    rates = zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, rate, factor in rates:
        group["lr"] = rate * factor(schedule.last_epoch)
