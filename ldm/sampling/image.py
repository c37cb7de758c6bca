"""Pictures that begin from a picture: image to image, inpainting, and a second pass that enlarges.

SDEdit (arXiv 2108.01073): noise is added to a picture as of some timestep, and taken away from
there on. Inpainting with an ordinary model (RePaint, arXiv 2201.09865, eq. 8, without its
resampling): after each step what is to stay is put back, with noise as of the timestep reached.
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.data.encoding import encode_pixels
from ldm.data.images import crop_box, to_tensor
from ldm.errors import UserError
from ldm.models.base import BaseModel


@dataclass(frozen=True)
class Start:
    """What pictures begin from. picture: RGB, of the size that is drawn.

    strength: the share of the steps that are run, above 0; 1 keeps next to nothing. mask: "L", of
    the same size; what is white is drawn, what is black stays, pixel by pixel; None: all is drawn.
    """

    picture: Image.Image
    strength: float = 0.7
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Hires:
    """A second pass: the latents enlarged by `factor`, then drawn over with `strength`."""

    factor: float
    strength: float = 0.6

    def size(self, base: BaseModel, width: int, height: int) -> tuple[int, int]:
        """Width and height of the end, in pixels: multiples of what the base needs."""
        width, height = (
            max(1, round(side * self.factor / base.multiple)) * base.multiple
            for side in (width, height)
        )
        return width, height


@dataclass(frozen=True)
class Known:
    """What is known of the result, as latents [N or 1, C, h, w], scaled, float32.

    mask [1, 1, h, w]: 1 where it is drawn, 0 where it stays; None: all is drawn.
    """

    latents: Tensor
    strength: float
    mask: Tensor | None = None

    def noisy(self, solver: Any, noise: Tensor, timesteps: Tensor) -> Tensor:
        """With noise [N, C, h, w] as of the first of the timesteps; without where there is none."""
        latents = self.latents.expand_as(noise)
        if not len(timesteps):
            return latents
        noised: Tensor = solver.add_noise(latents, noise, timesteps[:1].repeat(len(noise)))
        return noised

    def put_back(self, drawn: Tensor, solver: Any, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What is drawn, and around it what stays, as of the first of the timesteps to come."""
        if self.mask is None:
            return drawn
        return torch.where(self.mask > 0, drawn, self.noisy(solver, noise, timesteps))


def known_of(base: BaseModel, start: Start) -> Known:
    """The posterior's mean of a picture: nothing drawn, so it is the same for every seed.

    A latent is drawn where any pixel of it is.
    """
    latents, _ = encode_pixels(base.vae, to_tensor(start.picture)[None], base.device)
    mask = None
    if start.mask is not None:
        pixels = to_tensor(start.mask)[None, :1]  # [-1, 1]
        drawn = torch.nn.functional.max_pool2d(pixels, base.latent_factor) > -1
        mask = drawn.float().to(base.device)
    return Known(latents.to(base.device), start.strength, mask)


def enlarged(latents: Tensor, height: int, width: int, strength: float) -> Known:
    """Latents [N, C, h, w] of another size, bicubic, to be drawn over."""
    size = (height, width)
    bigger = torch.nn.functional.interpolate(latents, size, mode="bicubic", align_corners=False)
    return Known(bigger, strength)


def last_timesteps(solver: Any, steps: int, strength: float) -> Tensor:
    """The timesteps of the last int(steps * strength) steps, after `solver.set_timesteps(steps)`.

    As in diffusers' StableDiffusionImg2ImgPipeline.get_timesteps; PLMS runs its second timestep
    twice, wherever it begins (there it does so only from the first one on, and is then a step off).
    """
    first = steps - min(int(steps * strength), steps)
    if hasattr(solver, "plms_timesteps"):
        left: Tensor = solver.timesteps.unique_consecutive()[first:]
        return torch.cat([left[:2], left[1:]])
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(first * solver.order)
    timesteps: Tensor = solver.timesteps[first * solver.order :]
    return timesteps


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut to the form of `size` in the middle, then resized: nothing is squashed."""
    box = crop_box(picture.size, "center", form=size)
    return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def pasted(drawn: Image.Image, start: Start | None) -> Image.Image:
    """What is drawn, and around it the picture's own pixels."""
    if start is None or start.mask is None:
        return drawn
    return Image.composite(drawn, start.picture, start.mask)


def check_begin(
    start: Start | None, hires: Hires | None, steps: int, size: tuple[int, int]
) -> None:
    """UserError for what cannot be drawn from; size: width and height in pixels."""
    if start is not None:
        _check_strength("strength", start.strength, steps)
        if start.picture.size != size or (start.mask and start.mask.size != size):
            raise ValueError(f"picture {start.picture.size} and mask must be of size {size}")
        if start.mask is not None and not start.mask.getbbox():
            raise UserError("mask: all of it is black, so nothing is to be drawn; white is drawn")
    if hires is not None:
        _check_strength("hires strength", hires.strength, steps)
        if not 1 < hires.factor <= 8:
            raise UserError(f"hires: {hires.factor} is not within 1 to 8; 1.5 or 2 is usual")
        if start is not None and start.mask is not None:
            raise UserError("hires: not with a mask; enlarge the picture first, or afterwards")


def _check_strength(key: str, strength: float, steps: int) -> None:
    if not 0 < strength <= 1:
        raise UserError(f"{key}: {strength} is not within 0 to 1; 0.5 to 0.8 is usual")
    if int(steps * strength) < 1:
        raise UserError(f"{key}: {strength} of {steps} steps is none; raise it, or the steps")
