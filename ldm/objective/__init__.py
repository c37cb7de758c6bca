"""The training objective: what is predicted, how far off it is, and how much each sample counts.

Training, pretraining and the held-out loss all use these functions, so that their numbers compare.
`Objective` ties them together for training; everything in it is per sample, so everything combines.
"""

from ldm.objective.loss import (
    HuberSchedule,
    Loss,
    combine,
    huber_threshold,
    mean_of,
    per_sample_loss,
)
from ldm.objective.noise import offset_noise, perturbed_noise, pyramid_noise
from ldm.objective.objective import Objective, ObjectiveSettings
from ldm.objective.schedule import NoiseSchedule, rescale_zero_terminal_snr
from ldm.objective.timesteps import Timesteps, draw_timestep, timestep_range
from ldm.objective.weights import Weighting, loss_weight

__all__ = [
    "HuberSchedule",
    "Loss",
    "NoiseSchedule",
    "Objective",
    "ObjectiveSettings",
    "Timesteps",
    "Weighting",
    "combine",
    "draw_timestep",
    "huber_threshold",
    "loss_weight",
    "mean_of",
    "offset_noise",
    "per_sample_loss",
    "perturbed_noise",
    "pyramid_noise",
    "rescale_zero_terminal_snr",
    "timestep_range",
]
