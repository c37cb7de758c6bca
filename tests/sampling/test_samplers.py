"""The table of samplers keeps the base's noise schedule."""

from typing import Any

import pytest
import torch

from ldm.errors import UserError
from ldm.sampling.samplers import SAMPLERS, check_steps, from_pure_noise, make_sampler
from tests.conftest import tiny_scheduler


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_schedule_is_the_bases(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_scheduler(kind)
    sampler = make_sampler(name, base)
    torch.testing.assert_close(sampler.betas, base.betas)
    assert sampler.config.prediction_type == base.config.prediction_type
    assert sampler.config.steps_offset == 1
    for key, value in SAMPLERS[name].settings.items():
        assert sampler.config[key] == value
    assert sampler is not make_sampler(name, base)


def test_karras_does_not_stick() -> None:
    karras = make_sampler("dpmpp_2m_karras", tiny_scheduler("v"))
    assert not make_sampler("dpmpp_2m", karras).config.use_karras_sigmas


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_is_obeyed_or_refused(name: str) -> None:
    from diffusers import DDIMScheduler

    base = DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    if name in ("plms", "heun"):
        with pytest.raises(UserError, match="pure noise"):
            make_sampler(name, base)
    else:
        sampler: Any = make_sampler(name, base)
        assert sampler.alphas_cumprod[-1] < 1e-6


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"'dpm'; there are ddim, .*unipc"):
        make_sampler("dpm", tiny_scheduler("v"))


def test_table() -> None:
    """The classes and settings written out, so that a slip in the table shows."""
    made = {name: make_sampler(name, tiny_scheduler("v")) for name in SAMPLERS}
    assert {name: type(sampler).__name__ for name, sampler in made.items()} == {
        "ddim": "DDIMScheduler",
        "plms": "PNDMScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler_a": "EulerAncestralDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "dpmpp_2m": "DPMSolverMultistepScheduler",
        "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler",
    }
    assert made["plms"].config.skip_prk_steps
    assert made["dpmpp_2m_karras"].config.use_karras_sigmas
    assert not made["dpmpp_2m"].config.use_karras_sigmas
    assert made["dpmpp_2m"].config.algorithm_type == "dpmsolver++"


def test_clips_only_where_the_base_says_so() -> None:
    """Predicted latents lie outside [-1, 1]; DDIMScheduler's own default would cut them there."""
    from diffusers import DDIMScheduler

    for base in (tiny_scheduler("eps"), DDIMScheduler(), DDIMScheduler(clip_sample=False)):
        assert make_sampler("ddim", base).config.clip_sample is False
    assert make_sampler("ddim", DDIMScheduler(clip_sample=True)).config.clip_sample is True


def test_steps_within_the_schedule() -> None:
    check_steps(1000, tiny_scheduler("eps"))
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"prior.steps: {steps} is not within 1 to 1000"):
            check_steps(steps, tiny_scheduler("eps"), "prior.steps")


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_from_pure_noise_ends_where_the_rescaled_objective_does(kind: str) -> None:
    from ldm.objective.schedule import rescale_zero_terminal_snr

    base = tiny_scheduler(kind)
    ours = make_sampler("ddim", from_pure_noise(base))
    rescaled = rescale_zero_terminal_snr(base.alphas_cumprod)
    torch.testing.assert_close(ours.alphas_cumprod.double(), rescaled, rtol=1e-4, atol=1e-6)
    ours.set_timesteps(10)
    assert int(ours.timesteps[0]) == len(base.alphas_cumprod) - 1
    assert ours.config.prediction_type == base.config.prediction_type
    assert not ours.config.clip_sample
