"""The noise of a sample: white, and what users add to it.

One sample at a time, on the CPU, each part from a generator of its own, so that the numbers depend
neither on the batch's company nor on which other parts are on.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

LEVELS = 10  # at most, of the noise pyramid


def offset_noise(noise: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Noise whose mean varies too: noise + strength x one normal number per channel, [C, h, w].

    White noise hardly moves a picture's mean brightness, so a model trained on it alone keeps near
    medium (https://www.crosslabs.org/blog/diffusion-with-offset-noise; strength 0.1 there). The
    deviation becomes sqrt(1 + strength^2).
    """
    channels = torch.randn(noise.shape[0], 1, 1, generator=generator)
    return noise + strength * channels


def pyramid_noise(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Noise with coarse structure too, of deviation 1, [C, h, w] (multi-resolution noise).

    Level i = 0, 1, ... adds discount^i x white noise of 1 / r^i the size, enlarged bilinearly, with
    r = 2 + 2u drawn at each level, u uniform in [0, 1); the last level is the first with a side of
    1 pixel, or the tenth. The sum is divided by its own standard deviation. (J. Whitaker,
    "Multi-Resolution Noise for Diffusion Model Training", W&B report 2023; sizes counted from the
    full one, as in kohya-ss sd-scripts. Both divide by the deviation of the batch.) discount: in
    (0, 1); about 0.3 for a light touch, 0.8 and more for a strong one.
    """
    size = noise.shape[-2:]
    for level in range(LEVELS):
        ratio = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        height, width = (max(1, int(side / ratio)) for side in size)
        coarse = torch.randn(1, noise.shape[0], height, width, generator=generator)
        noise = noise + discount**level * interpolate(coarse, size=size, mode="bilinear")[0]
        if 1 in (height, width):
            break
    return noise / noise.std()


def perturbed_noise(noise: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Noise for the network's input while `noise` stays the target, [C, h, w].

    noise + strength x white noise: errors like those that a sampler makes on its way (input
    perturbation, arXiv 2301.11706; strength gamma = 0.1 there).
    """
    return noise + strength * torch.randn(noise.shape, generator=generator)
