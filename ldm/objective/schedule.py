"""The forward process: noise levels, and what the network is to predict at each.

Notation in the docstrings: `a` is alphas_cumprod at timestep t, x0 the clean latents, n the noise,
xt = sqrt(a) x0 + sqrt(1 - a) n. Everything is computed in the latents' type, in float32 at least.
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


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Noise levels that end at SNR 0, [T] -> [T] float64 (arXiv 2305.08891, algorithm 1).

    sqrt(a) is shifted so that its last value is 0, then scaled so that its first one is what it
    was. Levels that end at 0 already stay as they are.
    """
    signal = alphas_cumprod.double().sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)).square()


class NoiseSchedule(nn.Module):
    """Noise levels of a discrete diffusion model and everything that follows from them.

    alphas_cumprod: [T], falling, in [0, 1]. Kept in float32 (what diffusers has, and what every
    device has) as a buffer that moves with the module it belongs to and is not part of any state
    dict. prediction_type: "epsilon" | "v_prediction". Every `t` below is an integer tensor [B] in
    [0, T). Raises UserError for anything else.
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

    def zero_terminal(self) -> "NoiseSchedule":
        """The same schedule rescaled to end at SNR 0 (see `rescale_zero_terminal_snr`).

        UserError for an epsilon model: at SNR 0 its input is its target, so that the last timestep
        teaches nothing about the picture (arXiv 2305.08891, section 3.3).
        """
        if self.prediction_type == "epsilon":
            raise UserError(
                "objective.zero_terminal_snr=true: the base model predicts epsilon, and at SNR 0 "
                "noise tells it nothing about the picture; use a base with v_prediction, or set "
                "objective.zero_terminal_snr=false (objective.noise_offset=0.1 also teaches very "
                "dark and very bright pictures)"
            )
        return type(self)(rescale_zero_terminal_snr(self.alphas_cumprod), self.prediction_type)

    def __len__(self) -> int:
        """Number of timesteps T."""
        return self.alphas_cumprod.shape[0]

    def alpha(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """a at t, [B] -> [B], in `dtype` but in float32 at least."""
        return self.alphas_cumprod[t].to(torch.promote_types(dtype, torch.float32))

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a) and sqrt(1 - a) at t, [B] -> two of [B, 1, 1, ...] to multiply `like` with."""
        alpha = self.alpha(t, like.dtype).reshape(-1, *[1] * (like.ndim - 1))
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

    def snr(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Signal-to-noise ratio a / (1 - a), [B] -> [B] (arXiv 2303.09556, section 3.1)."""
        alpha = self.alpha(t, dtype)
        return alpha / (1 - alpha)

    def sigma(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Noise per signal sqrt((1 - a) / a) = 1 / sqrt(SNR), [B] -> [B]; infinite at SNR 0."""
        alpha = self.alpha(t, dtype)
        return ((1 - alpha) / alpha).sqrt()
