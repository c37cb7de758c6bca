"""Losses against formulas written out in float64, sample by sample; how samples are added up."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ldm.objective import (
    HuberSchedule,
    Loss,
    NoiseSchedule,
    combine,
    huber_threshold,
    mean_of,
    per_sample_loss,
)

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))
C = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    return prediction, target


def element(loss: str, d: float, c: float) -> float:
    if loss == "l2":
        return d * d
    smooth = 2 * (math.sqrt(d * d + c * c) - c)
    return c * smooth if loss == "huber" else smooth


@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_per_sample(loss: Loss, masked: bool) -> None:
    prediction, target = pair()
    mask = torch.rand(3, 1, 8, 8, dtype=torch.float64) if masked else None
    expected = []
    for n, (one, other) in enumerate(zip(prediction, target, strict=True)):
        total = weights = 0.0
        for channel, row, column in torch.cartesian_prod(*(torch.arange(k) for k in (4, 8, 8))):
            d = float(one[channel, row, column] - other[channel, row, column])
            m = 1.0 if mask is None else float(mask[n, 0, row, column])
            total += m * element(loss, d, float(C[n]))
            weights += m
        expected.append(total / weights)
    ours = per_sample_loss(prediction, target, loss, c=C, mask=mask)
    torch.testing.assert_close(
        ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )
    in_float32 = per_sample_loss(prediction.float(), target.float(), loss, c=C.float(), mask=mask)
    torch.testing.assert_close(in_float32.double(), ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
def test_gradients_are_those_of_the_formula(loss: Loss) -> None:
    prediction, target = pair()
    mask = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    prediction.requires_grad_()
    per_sample_loss(prediction, target, loss, c=C, mask=mask).sum().backward()
    d, c = (prediction - target).detach(), C.reshape(-1, 1, 1, 1)
    slope = {"l2": d, "huber": c * d / (d**2 + c**2).sqrt(), "smooth_l1": d / (d**2 + c**2).sqrt()}
    expected = 2 * slope[loss] * mask / (4 * mask.sum((1, 2, 3), keepdim=True))
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, expected, rtol=1e-10, atol=1e-16)


def test_half_types_are_promoted_and_float64_is_kept() -> None:
    prediction, target = pair()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        halves = prediction.to(dtype), target.to(dtype)
        assert per_sample_loss(*halves).dtype == torch.float32
        assert per_sample_loss(*halves, "huber", c=C).dtype == torch.float32
    assert per_sample_loss(prediction.bfloat16(), target).dtype == torch.float64


def test_a_small_error_is_not_lost_in_float32() -> None:
    d = torch.full((1, 1, 2, 2), 1e-4)
    value = per_sample_loss(d, torch.zeros_like(d), "huber", c=torch.ones(1))
    torch.testing.assert_close(value, torch.tensor([1e-8]), rtol=1e-5, atol=0)


def test_a_perfect_prediction_has_a_gradient() -> None:
    prediction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    per_sample_loss(prediction, torch.zeros(1, 1, 2, 2), "huber", c=torch.ones(1)).backward()
    assert prediction.grad is not None and prediction.grad.eq(0).all()


def test_a_subject_counts_the_same_whatever_its_size() -> None:
    error = torch.full((2, 4, 8, 8), 3.0)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :2, :2] = 1
    mask[1] = 0.25
    error[0, :, 2:] = 100  # outside
    value = per_sample_loss(error, torch.zeros_like(error), mask=mask)
    torch.testing.assert_close(value, torch.tensor([9.0, 9.0]))
    assert per_sample_loss(error, torch.zeros_like(error), mask=torch.zeros(2, 1, 8, 8)).eq(0).all()


@pytest.mark.parametrize("c", [0.02, 0.1, 1.0])
def test_thresholds_over_the_timesteps(c: float) -> None:
    t = torch.tensor([0, 1, 500, 999])
    shapes: list[HuberSchedule] = ["constant", "exponential", "snr"]
    for shape in shapes:
        ours = huber_threshold(SCHEDULE, t, c, shape, torch.float64)
        for value, step in zip(ours.tolist(), t.tolist(), strict=True):
            a = float(SCHEDULE.alphas_cumprod[step])
            expected = {
                "constant": c,
                "exponential": math.exp(-(-math.log(c) / 1000) * step),
                "snr": (1 - c) / (1 + math.sqrt((1 - a) / a)) ** 2 + c,
            }[shape]
            assert value == pytest.approx(expected, rel=1e-12)
        assert huber_threshold(SCHEDULE, t, c, shape, torch.bfloat16).dtype == torch.float32


def test_the_threshold_at_snr_zero_is_c() -> None:
    ends = NoiseSchedule(SCHEDULE.alphas_cumprod, "v_prediction").zero_terminal()
    last = torch.tensor([999])
    torch.testing.assert_close(huber_threshold(ends, last, 0.1, "snr"), torch.tensor([0.1]))


def test_mistakes_of_the_caller() -> None:
    prediction, target = pair()
    with pytest.raises(ValueError, match="differ in shape"):
        per_sample_loss(prediction, target[:1])
    with pytest.raises(ValueError, match="threshold"):
        per_sample_loss(prediction, target, "huber")
    with pytest.raises(ValueError, match="threshold"):
        per_sample_loss(prediction, target, "huber", c=C[:1])
    with pytest.raises(ValueError, match="'l1'"):
        per_sample_loss(prediction, target, "l1", c=C)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'linear'"):
        huber_threshold(SCHEDULE, torch.tensor([0]), 0.1, "linear")  # type: ignore[arg-type]


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
    """Value and gradient of B + B samples, in float64, however they are cut."""
    torch.manual_seed(0)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    losses, weight = torch.rand(2, 12, dtype=torch.float64)
    is_prior = torch.tensor([False] * 6 + [True] * 6)
    (whole,) = torch.autograd.grad(combine(weight * losses * scale**3, is_prior, 0.7), scale)
    for size in (1, 2, 3):
        parts = [[*range(n, n + size), *range(6 + n, 6 + n + size)] for n in range(0, 6, size)]
        values = [combine((weight * losses)[p] * scale**3, is_prior[p], 0.7) for p in parts]
        mean = torch.stack(values).mean()
        by_hand = losses * weight * 1.3**3
        expected = by_hand[:6].mean() + 0.7 * by_hand[6:].mean()
        torch.testing.assert_close(mean, expected, rtol=1e-14, atol=0)
        (gradient,) = torch.autograd.grad(mean, scale)
        torch.testing.assert_close(gradient, whole, rtol=1e-14, atol=0)
