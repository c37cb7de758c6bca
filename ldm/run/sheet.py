"""The picture to look at first: the subject, what was learnt, and the untouched base beside it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.data.images import load_picture
from ldm.errors import UserError
from ldm.sampling.grid import labelled_grid, without_labels

log = logging.getLogger(__name__)

GAP = 24
TITLE = 28  # pixels of a title's line


def readable(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures that can still be read; a warning names the others and says why."""
    pictures = []
    for path in paths:
        try:
            pictures.append(load_picture(path))
        except UserError as error:
            log.warning("left out of the results: %s", error)
    return pictures


def result_sheet(
    pictures: list[Path], after: Path, before: Path | None, step: int, shape: tuple[int, int]
) -> Image.Image:
    """The subject's pictures above two sample grids with the same prompts and seeds.

    pictures: the first eight that are still there are shown. after: the grid drawn at optimizer
    step `step`; before: the one at step 0, the untouched base; None: it is left out. shape: rows
    and columns in each.
    """
    grids = {f"after {step} steps": _opened(after)}
    if before is not None:
        title = "the untouched base, same seeds"
        grids[title] = without_labels(_opened(before), *shape)
    shown = readable(pictures[:8])
    if not shown:
        return beside(grids)
    side = min(min(picture.size) for picture in shown)
    strip = labelled_grid([[_square(picture, min(side, 256)) for picture in shown]])
    return stacked([beside({"the subject": strip}), beside(grids)])


def beside(parts: dict[str, Image.Image]) -> Image.Image:
    """Side by side, each under its title."""
    width = sum(part.width for part in parts.values()) + GAP * (len(parts) - 1)
    row = Image.new("RGB", (width, TITLE + max(p.height for p in parts.values())), "white")
    draw, font, x = ImageDraw.Draw(row), ImageFont.load_default(size=20), 0
    for title, part in parts.items():
        draw.text((x, 0), title, "black", font)
        row.paste(part, (x, TITLE))
        x += part.width + GAP
    return row


def stacked(rows: list[Image.Image]) -> Image.Image:
    """One above the other."""
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1)
    sheet, y = Image.new("RGB", (max(row.width for row in rows), height), "white"), 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height + GAP
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
