"""Samplers by name: one table over diffusers' schedulers."""

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


def make_sampler(name: str, base_scheduler: Any) -> Any:
    """Return a fresh diffusers scheduler of this name, on the noise schedule of `base_scheduler`.

    Betas, prediction type, timestep spacing and offset are the base's; only what makes the sampler
    is set here. Schedulers keep state between steps, so each batch needs a fresh one. UserError:
    an unknown name, or one that cannot follow the base's noise schedule.
    """
    import diffusers

    check_sampler(name)
    sampler = SAMPLERS[name]
    config = base_scheduler.config
    scheduler = getattr(diffusers, sampler.scheduler).from_config(config, **sampler.settings)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in _known(scheduler):
        raise UserError(
            f"sampler {name} cannot start from pure noise (rescale_betas_zero_snr), as this base "
            "was trained to; use ddim, euler, euler_a, dpmpp_2m or unipc"
        )
    return scheduler


def check_sampler(name: str, key: str = "sampler") -> None:
    """Raise UserError, naming `key`, unless `name` is in the table."""
    if name not in SAMPLERS:
        raise UserError(f"{key}: there is no sampler {name!r}; there are {', '.join(SAMPLERS)}")


def _known(scheduler: Any) -> set[str]:
    """Return the settings that the scheduler's class takes (its config also keeps others')."""
    return set(type(scheduler)._get_init_keys(type(scheduler)))
