"""How much each noise level counts: loss weights as functions of the signal-to-noise ratio.

Papers give their weights for different predictions; one error seen three ways relates them. From
x0 = (xt - sqrt(1 - a) n) / sqrt(a) = sqrt(a) xt - sqrt(1 - a) v and SNR = a / (1 - a):

    |x0 - x0'|^2 = |n - n'|^2 / SNR = |v - v'|^2 / (SNR + 1)

So a weight w on the x0 loss is w / SNR on the epsilon loss and w / (SNR + 1) on the v loss, and
what is e on the epsilon loss is e SNR / (SNR + 1) on the v loss. (Exact for the l2 loss; on a Huber
loss the same number multiplies.)
"""

from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["uniform", "min_snr", "soft_min_snr", "debiased", "p2"]


def loss_weight(
    snr: Tensor,
    prediction_type: str,
    weighting: Weighting = "uniform",
    *,
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
) -> Tensor:
    """Weight of the loss on the network's own prediction at each `snr` >= 0, [B] -> [B].

    uniform: 1, whatever is predicted: the loss the base model was trained with.
    min_snr: epsilon min(SNR, gamma) / SNR, v min(SNR, gamma) / (SNR + 1)
        (arXiv 2303.09556, section 3.4; gamma 5 there).
    soft_min_snr: epsilon gamma / (SNR + gamma); 1 / (sigma^2 + 1 / gamma) on x0 with
        sigma^2 = 1 / SNR: min_snr without its corner (Hourglass Diffusion Transformers,
        arXiv 2401.11605; gamma 4 there).
    debiased: epsilon 1 / sqrt(SNR) (arXiv 2310.08442). Infinite at SNR 0, as the paper has it.
    p2: epsilon 1 / (k + SNR)^gamma (Perception Prioritized Training, arXiv 2204.00227; k 1 and
        gamma 1 or 0.5 there).

    On v each is the epsilon weight times SNR / (SNR + 1). At SNR 0 the limit is meant, which is
    finite for v always. ValueError for an unknown weighting.
    """
    if weighting == "uniform":
        return torch.ones_like(snr)
    finite = torch.finfo(snr.dtype)
    snr = snr.clamp(finite.tiny, finite.max)  # the ends stand for their limits: no 0 / 0
    if weighting == "min_snr":
        on_original = snr.clamp(max=min_snr_gamma)
    elif weighting == "soft_min_snr":
        on_original = 1 / (1 / snr + 1 / min_snr_gamma)
    elif weighting == "debiased":
        on_original = snr.sqrt()
    elif weighting == "p2":
        on_original = snr / (p2_k + snr) ** p2_gamma
    else:
        raise ValueError(f"unknown weighting {weighting!r}")
    return on_original / (snr if prediction_type == "epsilon" else snr + 1)
