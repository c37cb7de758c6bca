"""The forward process: noise levels, what the network is to predict at each, and loss weights.

Notation in the docstrings: `a` is alphas_cumprod at timestep t, x0 the clean latents, n the noise,
xt = sqrt(a) x0 + sqrt(1 - a) n.
"""

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ldm.errors import UserError

PredictionType = Literal["epsilon", "v_prediction"]


class DiffusersScheduler(Protocol):
    """What is needed of a diffusers scheduler."""

    alphas_cumprod: Tensor
    config: dict


class NoiseSchedule(nn.Module):
    """Noise levels of a discrete diffusion model and everything that follows from them.

    alphas_cumprod: [T], falling, in [0, 1]. Kept in float32 as a buffer that moves with the module
    it belongs to and is not part of any state dict. prediction_type: "epsilon" | "v_prediction".
    Every `t` below is an integer tensor [B] in [0, T). Raises UserError for anything else.
    """

    alphas_cumprod: Tensor

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> None:
        super().__init__()
        known = get_args(PredictionType)
        if prediction_type not in known:
            raise UserError(
                f"the base model's scheduler has prediction_type {prediction_type!r}; "
                f"this trains {' and '.join(known)} models"
            )
        if alphas_cumprod.ndim != 1 or alphas_cumprod.min() < 0 or alphas_cumprod.max() > 1:
            raise UserError("alphas_cumprod must be a 1-d tensor of numbers in [0, 1]")
        self.prediction_type = prediction_type
        self.register_buffer("alphas_cumprod", alphas_cumprod.float().clone(), persistent=False)

    @classmethod
    def from_scheduler(cls, scheduler: DiffusersScheduler) -> "NoiseSchedule":
        """From a diffusers scheduler; UserError for one without alphas_cumprod (flow matching)."""
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"the base model's scheduler {type(scheduler).__name__} has no alphas_cumprod: "
                "only discrete-time diffusion models (Stable Diffusion 1, 2, XL) can be trained"
            )
        return cls(scheduler.alphas_cumprod, scheduler.config.get("prediction_type", "epsilon"))

    def __len__(self) -> int:
        """Number of timesteps T."""
        return self.alphas_cumprod.shape[0]

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a) and sqrt(1 - a) at t, [B] -> two of [B, 1, 1, ...] to multiply `like` with."""
        alpha = self.alphas_cumprod[t].reshape(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = sqrt(a) x0 + sqrt(1 - a) n, [B, C, h, w] (DDPM, arXiv 2006.11239, equation 4)."""
        signal, sigma = self._at(t, latents)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict, [B, C, h, w].

        epsilon: n (DDPM, arXiv 2006.11239, equation 14);
        v_prediction: sqrt(a) n - sqrt(1 - a) x0 (arXiv 2202.00512, section 4 and appendix D).
        """
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._at(t, latents)
        return signal * noise - sigma * latents

    def predicted_original(self, noisy: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """x0 as the network sees it, from xt and its prediction, [B, C, h, w].

        epsilon: (xt - sqrt(1 - a) e) / sqrt(a) (DDPM, equation 15); v: sqrt(a) xt - sqrt(1 - a) v
        (arXiv 2202.00512, appendix D). With epsilon and zero terminal SNR it is not finite there.
        """
        signal, sigma = self._at(t, noisy)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal
        return signal * noisy - sigma * prediction

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a / (1 - a), [B] -> [B] (arXiv 2303.09556, section 3.1)."""
        alpha = self.alphas_cumprod[t]
        return alpha / (1 - alpha)

    def weight(self, t: Tensor, min_snr_gamma: float | None = None) -> Tensor:
        """Loss weight of each sample, [B] -> [B]; ones without `min_snr_gamma` (> 0; 5 is usual).

        Min-SNR-gamma, arXiv 2303.09556, section 3.4: epsilon min(SNR, gamma) / SNR;
        v min(SNR, gamma) / (SNR + 1). At SNR 0 the former is 1, its limit.
        """
        snr = self.snr(t)
        if min_snr_gamma is None:
            return torch.ones_like(snr)
        if self.prediction_type == "epsilon":
            return (min_snr_gamma / snr).clamp(max=1)
        return snr.clamp(max=min_snr_gamma) / (snr + 1)
