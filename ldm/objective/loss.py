"""The loss of each sample, and the one line that adds them up."""

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ldm.objective.schedule import NoiseSchedule

Loss = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The type a loss of these is computed in: theirs, but float32 at least."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def huber_threshold(
    schedule: NoiseSchedule,
    t: Tensor,
    c: float,
    shape: HuberSchedule = "constant",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Threshold of the pseudo-Huber losses at each timestep, [B] -> [B]; c in (0, 1].

    constant: c.
    exponential: c^(t / T) = exp(-alpha t), alpha = -ln(c) / T, from 1 (nearly l2) on clean latents
        to c on noise (arXiv 2403.16728 and the code beside it).
    snr: (1 - c) / (1 + sigma(t))^2 + c with sigma = 1 / sqrt(SNR), between the same ends (kohya-ss
        sd-scripts, `huber_schedule`, its default). c at SNR 0.
    ValueError for an unknown shape.
    """
    if shape == "exponential":
        dtype = torch.promote_types(dtype, torch.float32)
        return torch.pow(c, t.to(dtype) / len(schedule))
    if shape == "snr":
        return (1 - c) / (1 + schedule.sigma(t, dtype)).square() + c
    if shape == "constant":
        return torch.full_like(schedule.alpha(t, dtype), c)
    raise ValueError(f"unknown huber_schedule {shape!r}")


def per_sample_loss(
    prediction: Tensor,
    target: Tensor,
    loss: Loss = "l2",
    *,
    c: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean loss over each sample's elements, [B, ...] -> [B], in float32 at least.

    With d = prediction - target, per element:
    l2: d^2 (DDPM, arXiv 2006.11239, equation 14, `L_simple`).
    huber: 2c (sqrt(d^2 + c^2) - c), about d^2 where |d| << c and 2c |d| where |d| >> c, so that
        single far-off values pull less (pseudo-Huber, arXiv 2403.16728; its factor as in kohya-ss
        sd-scripts). smooth_l1: the same without the factor c.
    c: threshold of each sample, [B], > 0; see `huber_threshold`. Not used by l2.
    mask: weights >= 0 of the pixels, [B, 1, h, w]. The mean is then sum(m l) / sum(m), so that a
        subject counts the same however small it is in the picture; 0 where the mask is all 0.
    ValueError when the shapes differ (they might broadcast) or c is missing.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )
    dtype = working_dtype(prediction, target)
    squares = (prediction.to(dtype) - target.to(dtype)).square()
    each = squares if loss == "l2" else pseudo_huber(squares, loss, c)
    if mask is None:
        return each.flatten(1).mean(1)
    weights = mask.to(dtype).expand_as(each).flatten(1)
    total = weights.sum(1).clamp(min=torch.finfo(dtype).tiny)
    return (weights * each.flatten(1)).sum(1) / total


def pseudo_huber(squares: Tensor, loss: Loss, c: Tensor | None) -> Tensor:
    """`huber` or `smooth_l1` of `per_sample_loss` from d^2, [B, ...] -> [B, ...]."""
    if c is None or c.shape != squares.shape[:1]:
        raise ValueError(f"loss {loss!r} needs a threshold c of each sample, [B]")
    c = c.to(squares.dtype).reshape(-1, *[1] * (squares.ndim - 1))
    # sqrt(d^2 + c^2) - c = d^2 / (sqrt(d^2 + c^2) + c), which loses nothing where |d| << c
    smooth = 2 * squares / ((squares + c.square()).sqrt() + c)
    if loss == "huber":
        return c * smooth
    if loss == "smooth_l1":
        return smooth
    raise ValueError(f"unknown loss {loss!r}")


def mean_of(per_sample: Tensor, mask: Tensor) -> Tensor:
    """Mean over the samples that `mask` selects, [B], bool [B] -> scalar; NaN when it selects none.

    Never makes the host wait for the GPU (no shape here depends on the mask).
    """
    return torch.sum(torch.where(mask, per_sample, 0)) / mask.sum()


def combine(per_sample: Tensor, is_prior: Tensor, prior_weight: float = 1.0) -> Tensor:
    """Mean over instance + `prior_weight` x mean over class samples, [B], bool [B] -> scalar.

    DreamBooth, arXiv 2208.12242, equation 2, each expectation as the mean over its own samples; a
    kind that is absent adds nothing. When a step is cut into parts (micro-batches, processes) that
    each hold an equal share of both kinds, the mean of the parts' losses is the loss of the whole;
    so weights multiply a sample's loss beforehand, and the means stay means over their number.
    """
    of_prior = is_prior.to(per_sample.dtype)
    of_instance = 1 - of_prior
    share = of_instance / of_instance.sum().clamp(min=1)
    share = share + prior_weight * of_prior / of_prior.sum().clamp(min=1)  # [B]
    return torch.sum(per_sample * share)
