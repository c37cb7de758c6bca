"""report.png: the report's head as one picture, for a README."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.errors import UserError
from ldm.evaluation.report import figures, plots, view
from ldm.evaluation.report.data import RunFiles
from ldm.evaluation.report.html import title, verdict
from ldm.evaluation.report.table import NOTHING, headlines
from ldm.evaluation.terms import full_name
from ldm.sampling.grid import Font, labelled_grid, wrapped

WIDTH = 1600  # pixels
MARGIN, GAP = 32, 24
FRAME = 4  # pixels around a picture of the chosen snapshot
PROMPTS = 12
LEAST_TILE, MOST_TILE = 48, 128  # pixels of a picture in the grid


def sheet(run: RunFiles) -> Image.Image:
    """Verdict, the subject, the grid over steps, the trade-off and a short table; WIDTH wide."""
    room = WIDTH - 2 * MARGIN
    parts: list[Image.Image | None] = [_text(title(run), 40, room), _text(verdict(run), 24, room)]
    parts += [_strip(run, room), _grid(run, room)]
    plot, table = _plot(run, room // 2 - GAP), _table(run, room // 2 - GAP)
    parts.append(_beside([part for part in (plot, table) if part]))
    present = [part for part in parts if part is not None]
    height = sum(part.height for part in present) + GAP * (len(present) - 1) + 2 * MARGIN
    whole, y = Image.new("RGB", (WIDTH, height), "white"), MARGIN
    for part in present:
        whole.paste(part, (MARGIN, y))
        y += part.height + GAP
    return whole


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _text(text: str, size: int, width: int, colour: str = "ink") -> Image.Image:
    """A text, broken into lines, on white."""
    font = _font(size)
    lines = wrapped(text, font, width) or " "
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), lines, font)
    drawn = Image.new("RGB", (width, round(box[3]) + size // 4), "white")
    ImageDraw.Draw(drawn).multiline_text((0, 0), lines, plots.COLOURS[colour], font)
    return drawn


def _strip(run: RunFiles, width: int) -> Image.Image | None:
    """The subject's training pictures, and as many held-out ones as fit beside them."""
    side, parts = 128, []
    shown = [(path, "training") for path in run.training[:6]]
    shown += [(path, "held out") for path in run.heldout]
    for path, kind in shown[: (width + 6) // (side + 6)]:
        try:
            parts.append((_square(view.opened(path, 2 * side), side), kind))
        except UserError:
            continue
    if not parts:
        return None
    return labelled_grid([[p for p, _ in parts]], columns=[kind for _, kind in parts], tile=side)


def _square(picture: Image.Image, side: int) -> Image.Image:
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    box = (left, top, left + edge, top + edge)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def _grid(run: RunFiles, width: int) -> Image.Image | None:
    """Prompts in rows, models in columns, one picture each; in two halves where that fits."""
    columns = view.columns(run)
    rows = view.rows(columns, "subject", budget=0)[:PROMPTS]
    if not rows:
        return _samples(run, width)
    blocks = 2 if len(rows) > 3 and len(columns) <= 6 else 1
    room = (width - (blocks - 1) * GAP) / blocks
    tile = int((room - 6 * (len(columns) + 1)) / (len(columns) + 1.5))
    tile = min(MOST_TILE, max(LEAST_TILE, tile))
    heads = [c.title + (" (chosen)" if c.mark == "chosen" else "") for c in columns]
    each = -(-len(rows) // blocks)
    grids = []
    for part in (rows[start : start + each] for start in range(0, len(rows), each)):
        pictures = [
            [_tile(cell, tile, c.mark) for cell, c in zip(row.cells, columns, strict=True)]
            for row in part
        ]
        grids.append(labelled_grid(pictures, [row.prompt for row in part], heads, tile))
    return _beside(grids)


def _tile(cell: Sequence[Path | None], side: int, mark: str) -> Image.Image:
    """The first picture of a cell, framed where it is of the chosen snapshot."""
    try:
        if not cell or cell[0] is None:
            raise UserError("no picture")
        tile = _square(view.opened(cell[0], 2 * side), side)
    except UserError:
        tile = Image.new("RGB", (side, side), plots.COLOURS["faint"])
    if mark == "chosen":
        box = (0, 0, side - 1, side - 1)
        ImageDraw.Draw(tile).rectangle(box, outline=plots.COLOURS["gold"], width=FRAME)
    return tile


def _samples(run: RunFiles, width: int) -> Image.Image | None:
    """First and last grid drawn while training, until there is something better."""
    steps = sorted(run.samples)
    grids = []
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
        try:
            grids.append(view.opened(run.samples[step], (width - GAP) // 2))
        except UserError:
            continue
    return _beside(grids)


def _plot(run: RunFiles, width: int) -> Image.Image | None:
    drawn = figures.tradeoffs(run) or figures.losses(run)
    return plots.picture(drawn[0], width) if drawn else None


def _table(run: RunFiles, width: int) -> Image.Image | None:
    """A few metrics: base, chosen (else last) snapshot, and what is reachable or unavoidable."""
    measured = [key for key in run.steps if run.scores(key)]
    if not measured:
        return None
    key = run.chosen if run.chosen in measured else measured[-1]
    assert key is not None
    step = f"step {key}" + (" (chosen)" if key == run.chosen else "")
    lines = [["", "base", step, "for scale"]]
    for row in headlines(run, key):
        scale = f"{row.limit_name} {row.limit.text}" if row.limit else ""
        shown = [c.text + (f" ({c.interval})" if c.interval else "") for c in row.cells]
        lines.append([full_name(row.metric), *shown, scale])
    return _drawn_table(lines, width)


def _drawn_table(lines: Sequence[Sequence[str]], width: int) -> Image.Image:
    """Rows of texts in the largest letters that fit; the first column is left, others right."""
    lines = [[text.replace(NOTHING, "-") for text in line] for line in lines]  # not in the font
    for size in range(18, 8, -1):
        font = _font(size)
        needed = [max(map(font.getlength, texts)) + size for texts in zip(*lines, strict=True)]
        if sum(needed) <= width:
            break
    needed[0] += width - sum(needed)
    height = 2 * size + 2
    drawn = Image.new("RGB", (width, height * len(lines)), "white")
    draw = ImageDraw.Draw(drawn)
    for place, line in enumerate(lines):
        y, end = place * height, 0.0
        colour = plots.COLOURS["soft" if place == 0 else "ink"]
        for column, text in enumerate(line):
            end += needed[column]
            x = end - font.getlength(text) if column else 0
            draw.text((x, y + size // 2), text, colour, font)
        draw.line((0, y + height - 1, width, y + height - 1), plots.COLOURS["faint"])
    return drawn


def _beside(parts: Sequence[Image.Image]) -> Image.Image | None:
    if not parts:
        return None
    width = sum(part.width for part in parts) + GAP * (len(parts) - 1)
    row, x = Image.new("RGB", (width, max(part.height for part in parts)), "white"), 0
    for part in parts:
        row.paste(part, (x, 0))
        x += part.width + GAP
    return row
