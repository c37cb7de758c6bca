"""The contact sheet: each picture whole, its crop drawn in, its warnings below."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from ldm.run.preflight.pictures import SHOWN, Look
from ldm.sampling.grid import wrapped

GAP, LINE, COLUMNS = 14, 18, 4
FINE, WRONG, INK = (30, 140, 60), (200, 40, 30), (30, 30, 30)


def contact_sheet(looks: Sequence[Look]) -> Image.Image:
    """What is cut off is pale; the crop's frame is green, or red where the picture is left out."""
    font = ImageFont.load_default(size=14)
    texts = [
        [(wrapped(text, font, SHOWN), colour) for text, colour in _lines(look)] for look in looks
    ]
    cells = [_framed(look) for look in looks]
    columns = min(COLUMNS, len(looks))
    rows = [
        range(start, min(start + columns, len(looks))) for start in range(0, len(looks), columns)
    ]
    heights = [
        max(cells[i].height for i in row) + max(LINE * _count(texts[i]) for i in row) + 2 * GAP
        for row in rows
    ]
    sheet = Image.new("RGB", (columns * (SHOWN + GAP) + GAP, sum(heights) + GAP), "white")
    draw, y = ImageDraw.Draw(sheet), GAP
    for row, height in zip(rows, heights, strict=True):
        floor = y + max(cells[i].height for i in row)
        for place, i in enumerate(row):
            x = GAP + place * (SHOWN + GAP)
            sheet.paste(cells[i], (x, floor - cells[i].height))
            line = floor + 4
            for text, colour in texts[i]:
                draw.multiline_text((x, line), text, colour, font, spacing=LINE - 14)
                line += LINE * (1 + text.count("\n"))
        y += height
    return sheet


def _lines(look: Look) -> list[tuple[str, tuple[int, int, int]]]:
    if look.shown is None:
        return [(look.path.name, INK), ("cannot be read", WRONG)]
    name = "{}  {} x {} -> {} x {}".format(look.path.name, *look.whole, *look.size)
    return [(name, INK)] + [(text, WRONG) for text in look.concerns.values()]


def _count(texts: Sequence[tuple[str, object]]) -> int:
    return sum(1 + text.count("\n") for text, _ in texts)


def _framed(look: Look) -> Image.Image:
    if look.shown is None:
        empty = Image.new("RGB", (SHOWN, SHOWN // 2), (225, 225, 225))
        ImageDraw.Draw(empty).line((0, 0, *empty.size), WRONG, 3)
        return empty
    pale = ImageEnhance.Brightness(look.shown.convert("L").convert("RGB")).enhance(0.5)
    cell = Image.blend(pale, Image.new("RGB", pale.size, "white"), 0.6)
    for box in look.boxes:
        cell.paste(look.shown.crop(box), box[:2])
    draw = ImageDraw.Draw(cell)
    for left, top, right, bottom in look.boxes:
        frame = (left, top, right - 1, bottom - 1)
        draw.rectangle(frame, outline=WRONG if look.is_dropped else FINE, width=3)
    return cell
