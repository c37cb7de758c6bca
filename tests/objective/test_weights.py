"""Loss weights against the papers' formulas in plain Python, and against what they stand for."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import compute_snr

from ldm.objective import NoiseSchedule, Weighting, loss_weight

WEIGHTINGS: list[Weighting] = ["min_snr", "soft_min_snr", "debiased", "p2"]
OPTIONS = {"min_snr_gamma": 4.0, "p2_gamma": 0.7, "p2_k": 1.3}
SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear")
T = torch.arange(1000)


def on_epsilon(weighting: str, snr: float) -> float:
    """The weight of the epsilon loss as the papers have it, with OPTIONS."""
    return {
        "min_snr": min(snr, 4.0) / snr,
        "soft_min_snr": (1 / snr) / (1 / snr + 1 / 4.0),  # 1 / (sigma^2 + 1 / gamma) on x0
        "debiased": 1 / math.sqrt(snr),
        "p2": 1 / (1.3 + snr) ** 0.7,
    }[weighting]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_are_the_formulas(weighting: Weighting) -> None:
    snr = NoiseSchedule.from_scheduler(SCHEDULER).snr(T, torch.float64)
    expected = torch.tensor([on_epsilon(weighting, x) for x in snr.tolist()], dtype=torch.float64)
    of_epsilon = loss_weight(snr, "epsilon", weighting, **OPTIONS)
    torch.testing.assert_close(of_epsilon, expected, rtol=1e-12, atol=0)
    of_v = loss_weight(snr, "v_prediction", weighting, **OPTIONS)
    torch.testing.assert_close(of_v, expected * snr / (snr + 1), rtol=1e-12, atol=0)
    in_float32 = loss_weight(snr.float(), "v_prediction", weighting, **OPTIONS)
    assert in_float32.dtype == torch.float32
    torch.testing.assert_close(in_float32.double(), of_v, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_network_weighs_the_same_however_it_predicts(weighting: Weighting) -> None:
    """The weighted l2 loss of a denoised picture does not depend on the prediction type."""
    torch.manual_seed(0)
    t = torch.tensor([3, 200, 700, 990])
    latents, noise, guess = torch.randn(3, 4, 4, 8, 8, dtype=torch.float64)
    losses = []
    for kind in ("epsilon", "v_prediction"):
        schedule = NoiseSchedule(SCHEDULER.alphas_cumprod, kind)
        noisy = schedule.add_noise(latents, noise, t)
        a = schedule.alpha(t, torch.float64).reshape(-1, 1, 1, 1)
        as_noise = (noisy - a.sqrt() * guess) / (1 - a).sqrt()  # what says "x0 is guess"
        as_v = a.sqrt() * as_noise - (1 - a).sqrt() * guess
        prediction = as_noise if kind == "epsilon" else as_v
        error = (prediction - schedule.target(latents, noise, t)).square().mean((1, 2, 3))
        losses.append(loss_weight(schedule.snr(t, a.dtype), kind, weighting, **OPTIONS) * error)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)


def test_min_snr_of_diffusers_and_the_usual_gamma() -> None:
    theirs = compute_snr(SCHEDULER, T)
    snr = NoiseSchedule.from_scheduler(SCHEDULER).snr(T)
    for kind, divisor in (("epsilon", theirs), ("v_prediction", theirs + 1)):
        expected = theirs.clamp(max=5) / divisor
        torch.testing.assert_close(loss_weight(snr, kind, "min_snr"), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_uniform_is_the_networks_own_loss(kind: str) -> None:
    snr = torch.tensor([0.0, 0.3, 40.0], dtype=torch.float64)
    assert loss_weight(snr, kind).equal(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_at_zero_terminal_snr(weighting: Weighting, dtype: torch.dtype) -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    snr = NoiseSchedule.from_scheduler(scheduler).snr(T, dtype)
    assert snr[-1] == 0
    of_v = loss_weight(snr, "v_prediction", weighting, **OPTIONS)
    assert of_v.isfinite().all() and 0 <= of_v[-1] < 1e-18
    if weighting != "debiased":
        of_epsilon = loss_weight(snr, "epsilon", weighting, **OPTIONS)
        limit = torch.tensor(1.3**-0.7 if weighting == "p2" else 1.0, dtype=dtype)
        torch.testing.assert_close(of_epsilon[-1], limit)
    without_noise = torch.tensor([torch.inf], dtype=dtype)
    for kind in ("epsilon", "v_prediction"):
        assert loss_weight(without_noise, kind, weighting).isfinite().all()


def test_an_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="'snr'"):
        loss_weight(torch.ones(1), "epsilon", "snr")  # type: ignore[arg-type]
