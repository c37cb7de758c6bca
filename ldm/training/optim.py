"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (arXiv 1711.05101) with a warm-up and a schedule over `steps` optimizer steps."""

    learning_rate: float
    steps: int
    text_encoder_learning_rate: float | None = None  # None: the same as the UNet's
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup: int = 0  # steps over which the learning rate rises
    schedule: Schedule = "constant"


def build_optimizer(
    modules: Mapping[str, nn.Module], settings: OptimizerSettings, fused: bool | None = None
) -> torch.optim.AdamW:
    """One AdamW with one named parameter group per module, in the order of `modules`.

    fused: None lets it be fused where all parameters lie on the CPU or a CUDA device. (Not with a
    gradient scaler: a fused step unscales inside, where clipping cannot see the gradients.)
    """
    groups: list[dict[str, Any]] = []
    for name, module in modules.items():
        rate = settings.learning_rate
        if name.startswith("text_encoder") and settings.text_encoder_learning_rate is not None:
            rate = settings.text_encoder_learning_rate
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        groups.append({"params": trained, "lr": rate, "name": name})
    if fused is None:
        parameters = [p for module in modules.values() for p in module.parameters()]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    first, second = settings.betas
    return torch.optim.AdamW(
        groups, betas=(first, second), weight_decay=settings.weight_decay, fused=fused
    )


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


def build_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> LambdaLR:
    """Learning-rate schedule, stepped once per optimizer step; all groups follow `rate_factor`."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, settings))
