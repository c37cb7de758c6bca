"""The loss of each sample, and the one line that adds them up."""

import torch
from torch import Tensor


def per_sample_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, [B, ...] -> [B] float32.

    DDPM, arXiv 2006.11239, equation 14 (`L_simple`): the norm inside the expectation, as a mean
    over a sample's elements. ValueError when the shapes differ (they might broadcast).
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def mean_of(per_sample: Tensor, mask: Tensor) -> Tensor:
    """Mean over the samples that `mask` selects, [B], bool [B] -> scalar; NaN when it selects none.

    Never makes the host wait for the GPU (no shape here depends on the mask).
    """
    return torch.sum(torch.where(mask, per_sample, 0)) / mask.sum()


def combine(per_sample: Tensor, is_prior: Tensor, prior_weight: float = 1.0) -> Tensor:
    """Mean over instance + `prior_weight` x mean over class samples, [B], bool [B] -> scalar.

    DreamBooth, arXiv 2208.12242, equation 2, each expectation as the mean over its own samples; a
    kind that is absent adds nothing. When a step is cut into parts (micro-batches, processes) that
    each hold an equal share of both kinds, the mean of the parts' losses is the loss of the whole.
    """
    of_instance, of_prior = (~is_prior).float(), is_prior.float()
    share = of_instance / of_instance.sum().clamp(min=1)
    share = share + prior_weight * of_prior / of_prior.sum().clamp(min=1)  # [B]
    return torch.sum(per_sample * share)
