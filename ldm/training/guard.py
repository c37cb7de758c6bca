"""Steps whose loss or gradient is not finite: skipped, named, and only so many in a row."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

IN_A_ROW = 3


class FiniteGuard:
    """Skips an optimizer step whose gradient is not finite; `hopeless` after three in a row.

    `note` each batch, then ask `step_is_good` once per optimizer step. With a gradient scaler
    (16-mixed) an infinite gradient is how it finds its scale, so only a loss that is not finite
    counts as trouble; the scaler skips such steps by itself.
    """

    def __init__(self) -> None:
        self.hopeless: str | None = None  # why the run has to stop
        self.skipped = False  # the last step was, by this or by the scaler
        self.bad_steps: list[int] = []  # the last ones in a row, as metrics.csv counts
        self._noted: list[tuple[dict[str, Any], Tensor]] = []

    def note(self, batch: dict[str, Any], per_sample: Tensor) -> None:
        """Remember a batch (names, timesteps, step) and its losses [B] until its step."""
        self._noted.append((batch, per_sample.detach()))

    def step_is_good(
        self,
        gradient_norm: Tensor,
        scaled: bool = False,
        agree: Callable[[bool], bool] = lambda skipped: skipped,
    ) -> bool:
        """Whether the optimizer may step; warns, and counts, where it may not.

        agree: whether any process wants to skip; needed where each looks at its own losses.
        """
        noted, self._noted = self._noted, []
        losses = torch.cat([losses.float() for _, losses in noted] or [gradient_norm.reshape(1)])
        good = losses.isfinite().all() if scaled else gradient_norm.isfinite()
        trouble = agree(not bool(good))  # the one place where a step waits for the device
        self.skipped = trouble or not bool(gradient_norm.isfinite())
        if not trouble:
            self.bad_steps.clear()
            return True
        step = noted[0][0]["step"] + 1 if noted else 0  # as metrics.csv counts
        self.bad_steps.append(step)
        log.warning("step %d is skipped: %s", step, _what_was_wrong(noted))
        if len(self.bad_steps) >= IN_A_ROW:
            listed = ", ".join(str(step) for step in self.bad_steps)
            self.hopeless = (
                f"steps {listed}: the loss or its gradient was not finite {IN_A_ROW} times in a "
                f"row; the state after step {step} is saved, but going on would meet the same: "
                "start a new run with a lower training.learning_rate or training.precision=fp32"
            )
        return False


def _what_was_wrong(noted: list[tuple[dict[str, Any], Tensor]]) -> str:
    """Pictures and timesteps of the samples whose loss is not finite, or else of all."""
    samples = [
        (f"{name} at timestep {int(t)}", bool(loss.isfinite()))
        for batch, losses in noted
        for name, t, loss in zip(batch["names"], batch["timesteps"], losses, strict=True)
    ]
    bad = [sample for sample, finite in samples if not finite]
    if bad:
        return f"the loss is not finite for {', '.join(bad)}"
    listed = ", ".join(sample for sample, _ in samples)
    return f"the gradient is not finite; its samples: {listed}"
