"""Pictures in a labelled grid, with the font that Pillow carries: no file to be missing."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 6
_TILE = 128  # pixels: smaller pictures are enlarged by a whole number
_INK = (30, 30, 30)
_PAPER = (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    tile: int = _TILE,
) -> Image.Image:
    """Lay out rows of pictures -> one RGB picture.

    labels: one text left of each row (prompts), or none. columns: one text above each column, or
    none. Rows may be of different lengths; pictures may differ in size, the largest counts. Small
    pictures are enlarged by a whole number, without smoothing, to at least `tile` pixels.
    """
    pictures = [picture for row in rows for picture in row]
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    if labels and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} rows")
    width, height = (max(sides) for sides in zip(*(p.size for p in pictures), strict=True))
    factor = math.ceil(tile / max(width, height))
    width, height = width * factor, height * factor
    font = ImageFont.load_default(size=max(12, min(width, height) // 10))
    heads = [wrapped(text, font, width) for text in columns]
    left = round(width * 1.5) + _GAP if labels else 0
    top = max((_height(text, font) + _GAP for text in heads), default=0)

    across = max(*map(len, rows), len(columns))
    size = (left + across * (width + _GAP) - _GAP, top + len(rows) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for x, text in enumerate(heads):
        draw.multiline_text((left + x * (width + _GAP), 0), text, _INK, font)
    for y, label in enumerate(labels):
        text = _cut(wrapped(label, font, left - 2 * _GAP), font, height)
        draw.multiline_text((0, top + y * (height + _GAP)), text, _INK, font)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = (left + x * (width + _GAP), top + y * (height + _GAP))
            sheet.paste(_enlarged(picture, factor), place)
    return sheet


def without_labels(grid: Image.Image, rows: int, columns: int) -> Image.Image:
    """Cut the labels off a `labelled_grid` of `rows` x `columns` square pictures without heads."""
    tile = (grid.height + _GAP) // rows - _GAP
    across = columns * (tile + _GAP) - _GAP
    return grid.crop((grid.width - across, 0, grid.width, grid.height))


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def wrapped(text: str, font: Font, width: int) -> str:
    """Break `text` at spaces, and words wider than a line anywhere, to fit `width` pixels."""
    lines: list[str] = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(line for line in lines if line)


def _cut(text: str, font: Font, height: int) -> str:
    """Drop the last lines of a text that is higher than `height` pixels, and show that by ..."""
    lines = text.split("\n")
    while len(lines) > 1 and _height("\n".join(lines), font) > height:
        lines = [*lines[:-2], lines[-2].removesuffix("...") + "..."]
    return "\n".join(lines)


def _height(text: str, font: Font) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return math.ceil(draw.multiline_textbbox((0, 0), text, font=font)[3])
