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
    return _to_squares(config, ready.resolution)


def _to_squares(config: Config, resolution: int) -> Transform:
    data = config.data
    red, green, blue = ImageColor.getrgb(config.subject.background)[:3]
    return Transform(
        resolution,
        data.crop,
        data.crops,
        data.mirror,
        (red, green, blue),
        config.seed,
    )


def subject_transform(config: Config, ready: Prepared) -> Transform:
    """To what `data.aspect` says, the pictures of a subject."""
    return transform_of(config, ready.resolution, ready.base.multiple)


def transform_of(config: Config, resolution: int, multiple: int) -> Transform:
    """`subject_transform`, of a base whose pictures' sides are multiples of `multiple`."""
    square = _to_squares(config, resolution)
    if config.data.aspect == "square":
        return square
    return replace(square, multiple=multiple, enlarge=config.data.enlarge)


def bucket_line(transform: Transform, pictures: Sequence[Path]) -> str:
    """Each picture's size, the one that it is trained in, and how much of it is cut off."""
    return ", ".join(_bucket(transform, picture) for picture in pictures)


def _bucket(transform: Transform, picture: Path) -> str:
    whole = size_of(picture)
    size = transform.size_of(whole)
    cut = round(100 * (1 - share_left(whole, size)))
    shown = "{} x {} -> {} x {}".format(*whole, *size)
    return f"{picture.name} {shown}" + (f" ({cut} % cut off)" if cut else "")
