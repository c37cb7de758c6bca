"""Pictures as a model of the base draws them: blurred by its VAE, and redrawn by its UNet.

The oracle is taught with them, so that it recognises a thing by what it is and not by how crisply
it is drawn.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from ldm.data.images import to_picture
from ldm.models.base import BaseModel, frozen_copy
from ldm.models.frozen import FrozenPrediction
from ldm.objective import NoiseSchedule
from ldm.randomness import generator
from ldm.storybook.pretraining.vae import to_unit

log = logging.getLogger(__name__)

REDRAWN_SHARE = 0.5  # of the pictures
REDRAWN_FROM = (20, 200)  # timesteps: at the later ones small things begin to be forgotten


@torch.inference_mode()
def soften(base: BaseModel, pictures: np.ndarray, seed: int, batch: int = 64) -> np.ndarray:
    """N x 64 x 64 x 3, uint8 -> the same pictures after the VAE; half of them were also noised in
    between, to a timestep of REDRAWN_FROM, and denoised in one step without a prompt."""
    base = frozen_copy(base)
    predict = FrozenPrediction(base)
    schedule = NoiseSchedule.from_scheduler(base.scheduler)
    scaling = base.vae.config.scaling_factor
    vae = base.vae.to(memory_format=torch.channels_last)  # faster
    softened = np.empty_like(pictures)
    for start in range(0, len(pictures), batch):
        rows = slice(start, start + batch)
        draw = generator(seed, "soften", start)
        clean = vae.encode(to_unit(pictures[rows])).latent_dist.sample(draw) * scaling
        t = torch.randint(*REDRAWN_FROM, (len(clean),), generator=draw)
        noise = torch.randn(clean.shape, generator=draw)
        redrawn = torch.rand(len(clean), generator=draw) < REDRAWN_SHARE
        if redrawn.any():
            noisy = schedule.add_noise(clean, noise, t)[redrawn]
            predicted = predict(noisy, t[redrawn], [""] * len(noisy))
            clean[redrawn] = schedule.predicted_original(noisy, predicted, t[redrawn])
        decoded = vae.decode(clean / scaling).sample
        softened[rows] = np.stack([np.asarray(to_picture(picture)) for picture in decoded])
        if start % (50 * batch) == 0:
            log.info("softened %d of %d pictures", start, len(pictures))
    return softened
