"""Which noise levels are trained, and how often."""

from typing import Literal

import torch

from ldm.errors import UserError

Timesteps = Literal["uniform", "logit_normal", "cubic"]


def timestep_range(minimum: int, maximum: int | None, timesteps: int) -> range:
    """The timesteps trained, [minimum, maximum); maximum None: all `timesteps` of the base model.

    UserError when it is empty or reaches beyond them.
    """
    if maximum is not None and maximum > timesteps:
        raise UserError(
            f"objective.timestep_max={maximum}: the base model has {timesteps} timesteps; "
            f"set at most {timesteps}, or null for all of them"
        )
    end = timesteps if maximum is None else maximum
    if not 0 <= minimum < end:
        raise UserError(
            f"objective.timestep_min={minimum}: must be at least 0 and less than {end} "
            "(objective.timestep_max, or else the base model's number of timesteps)"
        )
    return range(minimum, end)


def draw_timestep(
    among: range,
    generator: torch.Generator,
    distribution: Timesteps = "uniform",
    *,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> int:
    """One timestep, floor(min + u (max - min)) in [min, max); `u` in [0, 1) is drawn as

    uniform: uniformly, each timestep alike (DDPM, arXiv 2006.11239, algorithm 1);
    logit_normal: sigmoid of a normal number with mean and deviation `logit_mean`, `logit_std`: the
        middle more often than the ends (Stable Diffusion 3, arXiv 2403.03206, section 3.1; there u
        is the share of noise itself, here the place among the timesteps);
    cubic: 1 - (a uniform number)^3, noisy levels more often (T2I-Adapter, arXiv 2302.08453).
    ValueError for an unknown distribution.
    """
    if distribution == "logit_normal":
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        u = torch.sigmoid(logit_mean + logit_std * normal).item()
    else:
        u = torch.rand((), generator=generator, dtype=torch.float64).item()
        if distribution == "cubic":
            u = 1 - u**3
        elif distribution != "uniform":
            raise ValueError(f"unknown distribution of timesteps {distribution!r}")
    return min(among.start + int(u * len(among)), among.stop - 1)  # u may round to 1
