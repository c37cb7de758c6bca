"""Samplers by name: one table over diffusers' schedulers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler class, what is set on it, and the name other tools know it by."""

    scheduler: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)


_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_EVEN = {"use_karras_sigmas": False}

SAMPLERS = {
    "ddim": Sampler("DDIMScheduler", "DDIM"),
    "plms": Sampler("PNDMScheduler", "PLMS", {"skip_prk_steps": True}),
    "euler": Sampler("EulerDiscreteScheduler", "Euler", _EVEN),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "Euler a"),
    "heun": Sampler("HeunDiscreteScheduler", "Heun", _EVEN),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "DPM++ 2M", {**_DPMPP_2M, **_EVEN}),
    "dpmpp_2m_karras": Sampler(
        "DPMSolverMultistepScheduler", "DPM++ 2M Karras", {**_DPMPP_2M, "use_karras_sigmas": True}
    ),
    "unipc": Sampler("UniPCMultistepScheduler", "UniPC", _EVEN),
}


def make_sampler(name: str, base_scheduler: Any, key: str = "sampler") -> Any:
    """Return a fresh diffusers scheduler of this name, on the noise schedule of `base_scheduler`.

    Betas, prediction type, timestep spacing and offset are the base's; only what makes the sampler
    is set here. Schedulers keep state between steps, so each batch needs a fresh one. UserError,
    naming `key`: an unknown name, or one that cannot follow the base's noise schedule.
    """
    import diffusers

    check_sampler(name, key)
    sampler = SAMPLERS[name]
    kind, config = getattr(diffusers, sampler.scheduler), base_scheduler.config
    options, settings = set(kind._get_init_keys(kind)), dict(sampler.settings)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in options:
        raise UserError(
            f"{key}: {name} cannot start from pure noise (rescale_betas_zero_snr), as this base "
            "was trained to; use ddim, euler, euler_a, dpmpp_2m or unipc"
        )
    if "clip_sample" in options and not _clips(config):
        settings["clip_sample"] = False  # latents lie outside [-1, 1], where diffusers would clip
    return kind.from_config(config, **settings)


def from_pure_noise(base_scheduler: Any) -> Any:
    """The same noise schedule rescaled to end at SNR 0, sampled from its last timestep on.

    Algorithm 1 and section 3.3 of arXiv 2305.08891: what `objective.zero_terminal_snr` trains for.
    """
    import diffusers

    return diffusers.DDIMScheduler.from_config(
        base_scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def _clips(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration says `clip_sample` itself, not by its class's default."""
    by_default = config.get("_use_default_values", ())
    return config.get("clip_sample") is True and "clip_sample" not in by_default


def check_steps(steps: int, base_scheduler: Any, key: str = "sampling steps") -> None:
    """Raise UserError, naming `key`, unless the base's noise schedule has as many timesteps."""
    most = int(base_scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise UserError(f"{key}: {steps} is not within 1 to {most}; 20 to 50 is usual")


def check_sampler(name: str, key: str = "sampler") -> None:
    """Raise UserError, naming `key`, unless `name` is in the table."""
    if name not in SAMPLERS:
        raise UserError(f"{key}: there is no sampler {name!r}; there are {', '.join(SAMPLERS)}")
