"""The objective against formulas written out in float64, and against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from ldm.errors import UserError
from ldm.objective import NoiseSchedule, combine, mean_of, per_sample_loss

KINDS = ("epsilon", "v_prediction")


def scheduler_of(kind: str) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)


def sample(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, batch, 4, 8, 8)
    return latents, noise, torch.tensor([0, 1, 500, 998, 999])[:batch]


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
def test_a_perfect_prediction_gives_the_latents_back(kind: str) -> None:
    latents, noise, t = sample()
    schedule = NoiseSchedule.from_scheduler(scheduler_of(kind))
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    original = schedule.predicted_original(noisy, target, t)
    torch.testing.assert_close(original, latents, atol=2e-5, rtol=1e-4)


def test_snr_and_min_snr_weights() -> None:
    t = torch.arange(1000)
    scheduler = scheduler_of("epsilon")
    alpha = scheduler.alphas_cumprod.double()
    snr = alpha / (1 - alpha)
    of_epsilon = NoiseSchedule(scheduler.alphas_cumprod, "epsilon")
    of_v = NoiseSchedule(scheduler.alphas_cumprod, "v_prediction")
    # diffusers computes the same in float32 through two square roots
    torch.testing.assert_close(of_epsilon.snr(t), compute_snr(scheduler, t), rtol=2e-4, atol=0)
    expected = snr.clamp(max=5)
    torch.testing.assert_close(of_epsilon.weight(t, 5).double(), expected / snr, rtol=2e-4, atol=0)
    torch.testing.assert_close(of_v.weight(t, 5).double(), expected / (snr + 1), rtol=2e-4, atol=0)
    assert of_epsilon.weight(t).eq(1).all() and of_v.weight(t).eq(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_has_finite_weights(kind: str) -> None:
    theirs = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.from_scheduler(theirs)
    t = torch.arange(1000)
    assert schedule.snr(t)[-1] == 0
    assert schedule.weight(t, 5).isfinite().all()
    assert schedule.weight(t, 5)[-1] == (1 if kind == "epsilon" else 0)


def test_loss_per_sample() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 8, 8)
    expected = torch.stack([(prediction - target)[n].double().pow(2).mean() for n in range(3)])
    torch.testing.assert_close(per_sample_loss(prediction, target).double(), expected)
    assert per_sample_loss(prediction.bfloat16(), target).dtype == torch.float32
    with pytest.raises(ValueError, match="differ in shape"):
        per_sample_loss(prediction, target[:1])


def test_the_mask_selects_wherever_the_samples_stand() -> None:
    per_sample = torch.tensor([1.0, 10.0, 3.0, 20.0, 30.0])
    is_prior = torch.tensor([False, True, False, True, True])
    assert combine(per_sample, is_prior, 0.5) == 2 + 0.5 * 20
    assert mean_of(per_sample, is_prior) == 20 and mean_of(per_sample, ~is_prior) == 2
    order = torch.tensor([4, 2, 0, 3, 1])
    assert combine(per_sample[order], is_prior[order], 0.5) == 12


def test_an_absent_kind_adds_nothing() -> None:
    per_sample = torch.tensor([1.0, 3.0], requires_grad=True)
    none, every = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    assert combine(per_sample, none, 7.0) == 2
    assert combine(per_sample, every, 7.0) == 14
    assert mean_of(per_sample, none).isnan()
    combine(per_sample, none, 7.0).backward()
    torch.testing.assert_close(per_sample.grad, torch.tensor([0.5, 0.5]))


def test_parts_with_equal_shares_average_to_the_whole() -> None:
    torch.manual_seed(0)
    per_sample = torch.rand(12)
    is_prior = torch.tensor([False] * 4 + [True] * 8)
    whole = combine(per_sample, is_prior, 0.7)
    parts = [torch.tensor([0, 1, 4, 5, 6, 7]), torch.tensor([2, 3, 8, 9, 10, 11])]
    halves = torch.stack([combine(per_sample[part], is_prior[part], 0.7) for part in parts])
    torch.testing.assert_close(halves.mean(), whole)


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
