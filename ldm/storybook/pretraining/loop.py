"""The loop that every pretraining stage shares: seeded by step, resumable, with an average."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """steps: optimizer steps. cooldown: share of the steps at the end over which the rate falls.

    ema: decay of the weights' average, which is what a stage ships (warmed up by step).
    """

    steps: int
    learning_rate: float
    warmup: int = 200
    cooldown: float = 0.3
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    save_every: int = 500


def rate_at(step: int, settings: LoopSettings) -> float:
    """Learning rate of a step: linear warm-up, constant, cosine to zero over the cooldown."""
    start = settings.steps * (1 - settings.cooldown)
    rate = settings.learning_rate * min(1.0, (step + 1) / settings.warmup)
    if step > start:
        share = (step - start) / max(1.0, settings.steps - start)
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return rate


class Loop:
    """Optimizer, weight average and state file of one stage.

    The state file is staged and renamed; a stage started again goes on from it, with the data of
    the step it stopped at, since data and noise are functions of the step.
    """

    def __init__(self, module: nn.Module, settings: LoopSettings, state: Path):
        self.module, self.settings, self.state = module, settings, state
        vectors = [p for p in module.parameters() if p.ndim < 2]
        matrices = [p for p in module.parameters() if p.ndim >= 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.step = 0
        if state.is_file():
            self._restore()

    def _restore(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average, self.step = saved["average"], saved["step"]
        log.info("%s: going on from step %d", self.state.stem, self.step)

    def save(self) -> None:
        """Write the state beside its place, then rename it."""
        staging = self.state.with_suffix(".staging")
        with staging.open("wb") as file:
            torch.save(
                {
                    "module": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "average": self.average,
                    "step": self.step,
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        staging.replace(self.state)

    def _update(self, loss: torch.Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)

    def run(
        self,
        loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
        after: Callable[[int], None] | None = None,
    ) -> None:
        """Train to the last step. `loss_at(step)` returns the loss and numbers to log.

        `after(step)` is called after each step.
        """
        name, begun, first = self.state.stem, time.monotonic(), self.step
        while self.step < self.settings.steps:
            loss, numbers = loss_at(self.step)
            self._update(loss)
            if self.step % 100 == 0:
                pace = (time.monotonic() - begun) / (self.step - first)
                left = pace * (self.settings.steps - self.step) / 60
                told = "  ".join(f"{k} {v:.4f}" for k, v in numbers.items())
                log.info(
                    "%s %d/%d  %s  %.0f min left", name, self.step, self.settings.steps, told, left
                )
            if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                self.save()
            if after is not None:
                after(self.step)

    def load_average(self) -> None:
        """Put the averaged weights, which the stage ships, into the module."""
        self.module.load_state_dict(self.average)
