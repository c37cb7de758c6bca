"""An exponential moving average of what is trained, kept beside the weights."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

EmaSchedule = Literal["constant", "power"]


class WeightAverage:
    """average <- d x average + (1 - d) x weights, after each optimizer step.

    The decay d of step 1, 2, ... is `decay` (constant), or min(decay, 1 - (1 + step)^-power): short
    at first, so that the start is soon forgotten, then longer (k-diffusion's and diffusers'
    warm-up, https://github.com/crowsonkb/k-diffusion; 2/3 for a million steps, 3/4 for fewer).
    modules: what is trained, by name; of each the parameters that require gradients now are
    averaged, in no less than float32, on their own device. The modules themselves are only read.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        schedule: EmaSchedule = "power",
        decay: float = 0.999,
        power: float = 0.75,
    ) -> None:
        self.schedule, self.decay, self.power = schedule, decay, power
        self._weights: dict[str, dict[str, nn.Parameter]] = {
            name: {key: p for key, p in module.named_parameters() if p.requires_grad}
            for name, module in modules.items()
        }
        self.average: dict[str, dict[str, Tensor]] = {
            name: {key: _at_least_float32(weight).clone() for key, weight in weights.items()}
            for name, weights in self._weights.items()
        }

    def decay_at(self, step: int) -> float:
        """The share of the average that stays after optimizer step `step`, counted from 1."""
        if self.schedule == "constant":
            return self.decay
        return min(self.decay, 1 - (1 + step) ** -self.power)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step `step` (from 1) into the average."""
        for name, weights in self._weights.items():
            averaged = self.average[name]
            for key, weight in weights.items():
                if averaged[key].device != weight.device:  # the module has moved since
                    averaged[key] = averaged[key].to(weight.device)
                averaged[key].lerp_(_at_least_float32(weight), 1 - self.decay_at(step))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages by module and parameter, not copied."""
        return self.average

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put saved averages in the place of these; KeyError where a parameter is missing."""
        for name, averaged in self.average.items():
            for key, tensor in averaged.items():
                tensor.copy_(state[name][key])


def _at_least_float32(weight: Tensor) -> Tensor:
    """In bfloat16 a share of a thousandth would be lost."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
