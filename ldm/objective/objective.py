"""The whole objective: draw, noise, target and loss of a batch, with every option on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.objective.loss import HuberSchedule, Loss, huber_threshold, per_sample_loss, working_dtype
from ldm.objective.noise import offset_noise, perturbed_noise, pyramid_noise
from ldm.objective.schedule import NoiseSchedule
from ldm.objective.timesteps import Timesteps, draw_timestep, timestep_range
from ldm.objective.weights import Weighting, loss_weight
from ldm.randomness import generator

Draws = Callable[[str], torch.Generator]  # purpose -> numbers of one sample


@dataclass(frozen=True)
class ObjectiveSettings:
    """What to train on. The defaults are plain DDPM, as Stable Diffusion was trained."""

    loss: Loss = "l2"
    huber_c: float = 0.1  # threshold of huber and smooth_l1, in (0, 1]
    huber_schedule: HuberSchedule = "snr"
    weighting: Weighting = "uniform"
    min_snr_gamma: float = 5.0  # of min_snr and soft_min_snr, > 0
    p2_gamma: float = 1.0
    p2_k: float = 1.0  # > 0
    noise_offset: float = 0.0
    pyramid_noise: float = 0.0  # discount per level, 0: none
    input_perturbation: float = 0.0
    zero_terminal_snr: bool = False
    timesteps: Timesteps = "uniform"
    timestep_min: int = 0
    timestep_max: int | None = None  # not included; None: the base model's number of timesteps
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mask_outside: float | None = None  # weight of what a mask leaves out; None: no masks


class Objective(nn.Module):
    """The objective of `settings` on the noise levels of `schedule`; see the functions it calls.

    Has no parameters and adds nothing to a state dict; `schedule` (rescaled to end at SNR 0 where
    the settings ask for it) moves with the module. `timesteps` is the range of those trained.
    Raises UserError for settings that the base model cannot be trained with.
    """

    def __init__(self, schedule: NoiseSchedule, settings: ObjectiveSettings | None = None) -> None:
        super().__init__()
        self.settings = settings = settings or ObjectiveSettings()
        self.schedule = schedule.zero_terminal() if settings.zero_terminal_snr else schedule
        self.timesteps = timestep_range(settings.timestep_min, settings.timestep_max, len(schedule))
        if settings.weighting == "debiased" and schedule.prediction_type == "epsilon":
            last = torch.tensor(self.timesteps.stop - 1, device=schedule.alphas_cumprod.device)
            if schedule.snr(last) == 0:
                raise UserError(
                    "objective.weighting=debiased: infinite at the base model's last timestep, "
                    f"whose SNR is 0; use min_snr, or set objective.timestep_max={last.item()}"
                )

    def draw(self, batch: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
        """What is random in a micro-batch, on the CPU.

        batch: "mean" and "std" of the VAE's posterior [B, C, h, w]; "index" [B], each sample's
        place in the global batch; "step". Returns "latents", a fresh sample of the posterior, mean
        + std x noise (arXiv 1312.6114, equation 10), and "noise", the target's, both
        [B, C, h, w]; "input_noise", what is added to the latents: the same tensor unless the input
        is perturbed; "timesteps" [B]. A sample's draws depend on (seed, purpose, step, place)
        alone: neither resuming nor cutting the step into parts changes them, nor does an option
        change another's.
        """
        shape = batch["mean"].shape[1:]
        samples: list[Draws] = [
            partial(generator, seed, step=batch["step"], index=place)
            for place in batch["index"].tolist()
        ]
        posterior = [torch.randn(shape, generator=draws("posterior")) for draws in samples]
        noise = torch.stack([self._noise(shape, draws) for draws in samples])
        return {
            "latents": batch["mean"] + batch["std"] * torch.stack(posterior),
            "noise": noise,
            "input_noise": self._input_noise(noise, samples),
            "timesteps": torch.tensor([self._timestep(draws) for draws in samples]),
        }

    def noisy(self, drawn: Mapping[str, Any]) -> Tensor:
        """The network's input, [B, C, h, w], from what `draw` made (on any device)."""
        return self.schedule.add_noise(drawn["latents"], drawn["input_noise"], drawn["timesteps"])

    def target(self, drawn: Mapping[str, Any]) -> Tensor:
        """What the network is to predict, [B, C, h, w], from what `draw` made (on any device)."""
        return self.schedule.target(drawn["latents"], drawn["noise"], drawn["timesteps"])

    def per_sample(
        self, prediction: Tensor, target: Tensor, t: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Weighted loss of each sample, [B, C, h, w] x 2, [B] -> [B], in float32 at least.

        mask: [B, 1, h, w] in [0, 1], 1 on the subject; what lies outside counts `mask_outside` of
        what lies inside. None, or no `mask_outside`: the plain mean over the picture.
        """
        settings, dtype = self.settings, working_dtype(prediction, target)
        if mask is not None and settings.mask_outside is not None:
            mask = mask.to(dtype)
            mask = mask + settings.mask_outside * (1 - mask)
        else:
            mask = None
        c = None
        if settings.loss != "l2":
            c = huber_threshold(self.schedule, t, settings.huber_c, settings.huber_schedule, dtype)
        loss = per_sample_loss(prediction, target, settings.loss, c=c, mask=mask)
        return loss * loss_weight(
            self.schedule.snr(t, dtype),
            self.schedule.prediction_type,
            settings.weighting,
            min_snr_gamma=settings.min_snr_gamma,
            p2_gamma=settings.p2_gamma,
            p2_k=settings.p2_k,
        )

    def _noise(self, shape: torch.Size, draws: Draws) -> Tensor:
        """The target's noise of one sample, [C, h, w]; an offset stays on top of the pyramid."""
        noise = torch.randn(shape, generator=draws("noise"))
        if self.settings.pyramid_noise:
            noise = pyramid_noise(noise, self.settings.pyramid_noise, draws("pyramid_noise"))
        if self.settings.noise_offset:
            noise = offset_noise(noise, self.settings.noise_offset, draws("noise_offset"))
        return noise

    def _input_noise(self, noise: Tensor, samples: list[Draws]) -> Tensor:
        """What is added to the latents, [B, C, h, w]: `noise` itself unless it is perturbed."""
        strength = self.settings.input_perturbation
        if not strength:
            return noise
        pairs = zip(noise, samples, strict=True)
        return torch.stack(
            [perturbed_noise(one, strength, draws("input_perturbation")) for one, draws in pairs]
        )

    def _timestep(self, draws: Draws) -> int:
        return draw_timestep(
            self.timesteps,
            draws("timestep"),
            self.settings.timesteps,
            logit_mean=self.settings.logit_mean,
            logit_std=self.settings.logit_std,
        )
