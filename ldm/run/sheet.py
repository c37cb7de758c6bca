"""The picture to look at first: the subject, what was learnt, and the untouched base beside it."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.data.images import load_picture
from ldm.sampling.grid import labelled_grid, without_labels

GAP = 24
TITLE = 28  # pixels of a title's line


def result_sheet(
    pictures: list[Path], after: Path, before: Path, step: int, shape: tuple[int, int]
) -> Image.Image:
    """The subject's pictures above two sample grids with the same prompts and seeds.

    after: the grid drawn at optimizer step `step`; before: the one at step 0, the untouched base.
    shape: rows and columns of pictures in each.
    """
    shown = [load_picture(path) for path in pictures[:8]]
    side = min(min(picture.size) for picture in shown)
    strip = labelled_grid([[_square(picture, min(side, 256)) for picture in shown]])
    parts = {
        "the subject": strip,
        f"after {step} steps": _opened(after),
        "the untouched base, same seeds": without_labels(_opened(before), *shape),
    }
    return _arranged(parts)


def _arranged(parts: dict[str, Image.Image]) -> Image.Image:
    """The first part on top, the other two side by side below, each under its title."""
    (_, strip), (_, left), (_, right) = parts.items()
    lower = TITLE + strip.height + GAP
    size = (
        max(strip.width, left.width + GAP + right.width),
        lower + TITLE + max(left.height, right.height),
    )
    sheet = Image.new("RGB", size, "white")
    places = ((0, 0), (0, lower), (left.width + GAP, lower))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for (title, part), (x, y) in zip(parts.items(), places, strict=True):
        draw.text((x, y), title, "black", font)
        sheet.paste(part, (x, y + TITLE))
    return sheet


def _square(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture, `side` x `side` pixels."""
    width, height = picture.size
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
