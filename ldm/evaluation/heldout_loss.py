"""The training loss on pictures that are not trained on, at noise and timesteps that stay the same.

Free of sampling and of feature extractors: it falls while the subject is learnt, rises on held-out
pictures when the training pictures are learnt by heart, and rises on class images when the class is
forgotten. Two models' losses differ by nothing but their weights.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ldm.data.encoding import encode_pixels
from ldm.data.images import fit
from ldm.data.sizes import sizes_of_whole
from ldm.evaluation.metrics import Score, mean
from ldm.models.base import BaseModel
from ldm.models.modes import in_eval_mode
from ldm.models.precision import autocast
from ldm.models.unet import predict
from ldm.objective import NoiseSchedule, Objective
from ldm.randomness import seed_of
from ldm.sampling.generate import Progress

TIMESTEPS = 10  # strata; the loss of one picture is their mean


def posterior_means(
    model: BaseModel, pictures: Sequence[Image.Image], resolution: int, batch: int = 8
) -> Tensor:
    """What the VAE makes of the middle squares of RGB pictures: [N, C, h, w], float32, CPU."""
    squares = [fit(picture, resolution) for picture in pictures]
    parts = [squares[start : start + batch] for start in range(0, len(squares), batch)]
    return torch.cat([encode_pixels(model.vae, torch.stack(part))[0] for part in parts])


def strata(timesteps: int, count: int = TIMESTEPS) -> list[int]:
    """The middles of `count` equal parts of 0 .. timesteps - 1, rising."""
    return [(2 * place + 1) * timesteps // (2 * count) for place in range(count)]


def heldout_losses(
    model: BaseModel,
    schedule: NoiseSchedule,
    latents: Tensor,
    prompts: Sequence[str],
    seed: int,
    *,
    batch: int = 8,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> list[float]:
    """Mean over timesteps of each picture's loss, N numbers; see `heldout_loss`.

    latents [N, C, h, w], of `posterior_means`; one prompt per picture. schedule: that of the
    untouched base, for all models alike, even where training changed its noise levels. The loss is
    plain l2 with uniform weights whatever is trained with (DDPM, arXiv 2006.11239, equation 14), at
    the middles of equal parts of all timesteps. Picture n's noise depends on (seed, n, part) alone.
    precision: see `autocast`. progress(done, in all) counts passes through the UNet.
    """
    if len(latents) != len(prompts):
        raise ValueError(f"{len(latents)} pictures, but {len(prompts)} prompts")
    objective = Objective(schedule).to(model.device)
    starts, parts = range(0, len(latents), batch), strata(len(schedule))
    losses = torch.zeros(len(latents), len(parts))
    device, done = model.device, 0
    height, width = (side * model.latent_factor for side in latents.shape[-2:])
    sizes = sizes_of_whole(height, width, len(latents)).to(device)
    with in_eval_mode(*model.networks.values()), autocast(device, precision):
        text = model.text.encode(prompts, device)
        for part, timestep in enumerate(parts):
            for start in starts:
                places = torch.arange(start, min(start + batch, len(latents)))
                mean_of = latents[places]
                inputs = {"mean": mean_of, "std": torch.zeros(()), "index": places, "step": part}
                drawn = objective.draw(inputs, seed_of(seed, "heldout"))
                drawn["timesteps"] = torch.full_like(places, timestep)
                drawn = {name: tensor.to(device) for name, tensor in drawn.items()}
                noisy, t = objective.noisy(drawn), drawn["timesteps"]
                prediction = predict(model.unet, noisy, t, text[places], sizes[places])
                loss = objective.per_sample(prediction, objective.target(drawn), t)
                losses[places, part] = loss.float().cpu()
                done += 1
                if progress is not None:
                    progress(done, len(parts) * len(starts))
    return losses.mean(dim=1).tolist()


def heldout_loss(losses: Sequence[float]) -> Score:
    """Mean over the pictures' `heldout_losses`; the interval resamples the pictures."""
    return mean(losses)
