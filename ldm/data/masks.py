"""Per-pixel loss masks: where in a picture the subject is, on the grid of its latents."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.data.images import Box, Size, is_mask, load_picture, open_upright, transparency_of
from ldm.data.latents import Latents, Transform
from ldm.data.ledger import digest_of
from ldm.errors import UserError

log = logging.getLogger(__name__)

BLACK = 2 / 255  # a mask of labels, 0 and 1, shows nothing either


def with_masks(latents: Latents, pictures: Sequence[Path], transform: Transform) -> Latents:
    """The same latents with the masks of their pictures: see `load_masks`.

    ValueError where pictures and transform are not those that the latents were made of.
    """
    grids = [(mean.shape[-1], mean.shape[-2]) for mean in latents.mean]
    return replace(latents, mask=load_masks(pictures, transform, grids))


def load_masks(
    pictures: Sequence[Path], transform: Transform, grids: Sequence[Size]
) -> list[torch.Tensor]:
    """Masks of N pictures in V variants: N of float32 [V, 1, h, w], 0 outside, 1 subject.

    grids: width and height of each picture's latents, w and h. A picture's mask is the greyscale of `x.mask.png` beside `x.jpg` (white: the subject), else the
    picture's own alpha channel where it has transparency, else ones everywhere; one warning names
    those. It goes through the crops and mirrors of its picture, then each latent gets the mean
    over the pixels that it covers. The mask is laid over the upright picture; should it have an
    EXIF orientation of its own, that is obeyed, as in any picture (tools write none). Its own
    transparency counts as black.

    Raises UserError for an unreadable file, a mask of another size than its picture, or one that
    is black wherever a variant looks.
    """
    if not pictures:
        raise ValueError("no picture given")
    masks, without = [], []
    for picture, grid in zip(pictures, grids, strict=True):  # one in memory at a time
        seen, whole, mask, path = _mask_of(picture, transform)
        if mask is None:
            without.append(picture.name)
        variants = transform.variants(seen, whole, digest_of(picture))
        masks.append(torch.stack([_on_grid(mask, seen, *each, grid, path) for each in variants]))
    if without:
        log.warning(
            "neither a mask (x.mask.png beside x.jpg) nor transparency, so all of it counts as "
            "subject: %s",
            ", ".join(without),
        )
    return masks


def mask_beside(picture: Path) -> Path | None:
    """The file `x.mask.png` (its ending in either case) beside `x.jpg`, or None."""
    found = [path for path in picture.parent.iterdir() if is_mask(path)]
    return min((path for path in found if path.name[:-9] == picture.stem), default=None)


def _mask_of(picture: Path, transform: Transform) -> tuple[Size, Size, Image.Image | None, Path]:
    """The size that the crops are made of, the whole picture's, the upright mask and its file.

    A large JPEG is decoded at less than its size, as it is for encoding: its crops are made of
    that, while its mask has the size of the whole.
    """
    with open_upright(picture, transform.resolution) as (image, whole):
        seen, alpha = image.size, transparency_of(image)
    path = mask_beside(picture)
    if path is None:
        return seen, whole, None if alpha is None else alpha.convert("F"), picture
    mask = load_picture(path, background=(0, 0, 0)).convert("L")
    if mask.size != whole:
        raise UserError(
            f"mask {path} is {mask.width} x {mask.height} pixels, its upright picture "
            f"{picture.name} {whole[0]} x {whole[1]}: save the mask in the picture's size"
        )
    # As floats: in 8 bit the mean of a cell that the subject only touches would be rounded to 0.
    return seen, whole, mask.convert("F"), path


def _on_grid(
    mask: Image.Image | None, seen: Size, box: Box, mirror: bool, grid: Size, path: Path
) -> torch.Tensor:
    """Cut `box`, in pixels of a picture of size `seen`, out of the mask: [1, h, w] of `grid`."""
    if mask is None:
        return torch.ones(1, grid[1], grid[0])
    left, right = (edge * mask.width / seen[0] for edge in box[::2])
    top, bottom = (edge * mask.height / seen[1] for edge in box[1::2])
    cells = mask.resize(grid, Image.Resampling.BOX, box=(left, top, right, bottom))
    values = torch.from_numpy(np.array(cells)).div(255).clamp(0, 1)[None]  # h w -> 1 h w
    if values.max() < BLACK:
        raise UserError(
            f"mask {path} is black in the crop {left:.0f}..{right:.0f} x {top:.0f}..{bottom:.0f}, "
            "so nothing of this picture would be learnt: paint the subject white (255), crop "
            "picture and mask around the subject, or remove the picture"
        )
    return values.flip(-1) if mirror else values
