"""Noise levels against formulas written out in float64, and against diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as of_betas
from diffusers.training_utils import compute_snr

from ldm.errors import UserError
from ldm.objective import NoiseSchedule, rescale_zero_terminal_snr

KINDS = ("epsilon", "v_prediction")
BETAS: dict[str, dict[str, Any]] = {
    "sd": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "ddpm": {"beta_schedule": "linear"},
}


def scheduler_of(kind: str) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)


def sample(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 5, 4, 8, 8, dtype=dtype)
    return latents, noise, torch.tensor([0, 1, 500, 998, 999])


@pytest.mark.parametrize("kind", KINDS)
def test_noising_and_target_equal_diffusers(kind: str) -> None:
    latents, noise, t = sample()
    theirs, ours = scheduler_of(kind), NoiseSchedule.from_scheduler(scheduler_of(kind))
    torch.testing.assert_close(
        ours.add_noise(latents, noise, t), theirs.add_noise(latents, noise, t)
    )
    target = noise if kind == "epsilon" else theirs.get_velocity(latents, noise, t)
    torch.testing.assert_close(ours.target(latents, noise, t), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True])
def test_everything_follows_the_type_of_the_latents(kind: str, zero: bool) -> None:
    if kind == "epsilon" and zero:
        return
    latents, noise, t = sample(torch.float64)
    schedule = NoiseSchedule.from_scheduler(scheduler_of(kind))
    schedule = schedule.zero_terminal() if zero else schedule
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    for n, step in enumerate(t.tolist()):
        a = float(schedule.alphas_cumprod[step])
        x, e = latents[n], noise[n]
        torch.testing.assert_close(noisy[n], a**0.5 * x + (1 - a) ** 0.5 * e, rtol=0, atol=1e-14)
        v = e if kind == "epsilon" else a**0.5 * e - (1 - a) ** 0.5 * x
        torch.testing.assert_close(target[n], v, rtol=0, atol=1e-14)
        snr = schedule.snr(t[n : n + 1], torch.float64)
        torch.testing.assert_close(snr, torch.tensor([a / (1 - a)], dtype=torch.float64))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, e = latents.to(dtype), noise.to(dtype)
        assert schedule.add_noise(x, e, t).dtype == torch.float32
    assert schedule.snr(t).dtype == schedule.sigma(t).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_the_latents_back(kind: str) -> None:
    latents, noise, t = sample(torch.float64)
    schedule = NoiseSchedule.from_scheduler(scheduler_of(kind))
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    original = schedule.predicted_original(noisy, target, t)
    torch.testing.assert_close(original, latents, atol=1e-10, rtol=0)


def test_snr_and_sigma() -> None:
    scheduler, t = scheduler_of("epsilon"), torch.arange(1000)
    alpha = scheduler.alphas_cumprod.double()
    schedule = NoiseSchedule.from_scheduler(scheduler)
    # diffusers computes the same in float32 through two square roots
    torch.testing.assert_close(schedule.snr(t), compute_snr(scheduler, t), rtol=2e-4, atol=0)
    exact = schedule.snr(t, torch.float64)
    torch.testing.assert_close(exact, alpha / (1 - alpha), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.sigma(t, torch.float64), exact**-0.5, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr_equals_diffusers(name: str) -> None:
    plain = DDIMScheduler(prediction_type="v_prediction", **BETAS[name])
    theirs = torch.cumprod(1 - of_betas(plain.betas.double()), 0)
    ours = rescale_zero_terminal_snr(plain.alphas_cumprod)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    in_float32 = DDIMScheduler(rescale_betas_zero_snr=True, **BETAS[name]).alphas_cumprod
    torch.testing.assert_close(ours.float(), in_float32, rtol=0, atol=1e-6)
    schedule = NoiseSchedule.from_scheduler(plain).zero_terminal()
    assert schedule.alphas_cumprod[-1] == 0 and schedule.snr(torch.tensor([999])) == 0
    torch.testing.assert_close(schedule.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert schedule.zero_terminal().alphas_cumprod.equal(schedule.alphas_cumprod)
    assert schedule.sigma(torch.tensor([999])).isinf()


def test_zero_terminal_snr_is_refused_for_an_epsilon_model() -> None:
    with pytest.raises(UserError, match=r"objective\.zero_terminal_snr=true.*=false"):
        NoiseSchedule.from_scheduler(scheduler_of("epsilon")).zero_terminal()


def test_schedules_that_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="alphas_cumprod"):
        NoiseSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="'sample'"):
        NoiseSchedule.from_scheduler(scheduler_of("sample"))
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        NoiseSchedule(torch.tensor([2.0, 1.0]))


def test_the_schedule_leaves_no_trace_in_a_state_dict() -> None:
    module = torch.nn.Module()
    module.schedule = NoiseSchedule.from_scheduler(scheduler_of("epsilon"))
    assert not module.state_dict()
    assert len(module.schedule) == 1000
