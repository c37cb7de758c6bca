"""What becomes of pictures before they are encoded, and how that is said."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import ImageColor

from ldm.config import Config
from ldm.data.buckets import share_left
from ldm.data.images import size_of
from ldm.data.latents import Transform
from ldm.run.prepare import Prepared


def square_transform(config: Config, ready: Prepared) -> Transform:
    """To squares, which class images always are."""
    data = config.data
    red, green, blue = ImageColor.getrgb(config.subject.background)[:3]
    return Transform(
        ready.resolution,
        data.crop,
        data.crops,
        data.mirror,
        (red, green, blue),
        config.seed,
    )


def subject_transform(config: Config, ready: Prepared) -> Transform:
    """To what `data.aspect` says, the pictures of a subject."""
    square = square_transform(config, ready)
    if config.data.aspect == "square":
        return square
    return replace(square, multiple=ready.base.multiple, enlarge=config.data.enlarge)


def bucket_line(transform: Transform, pictures: Sequence[Path]) -> str:
    """Each picture's size, the one that it is trained in, and how much of it is cut off."""
    return ", ".join(_bucket(transform, picture) for picture in pictures)


def _bucket(transform: Transform, picture: Path) -> str:
    whole = size_of(picture)
    size = transform.size_of(whole)
    cut = round(100 * (1 - share_left(whole, size)))
    shown = "{} x {} -> {} x {}".format(*whole, *size)
    return f"{picture.name} {shown}" + (f" ({cut} % cut off)" if cut else "")
