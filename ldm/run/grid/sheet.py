"""A grid as one picture and as a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ldm.checkpoint.files import flush, staging
from ldm.errors import explain_disk_errors
from ldm.run.grid.axes import Axis, Cell
from ldm.run.sheet import beside, stacked
from ldm.sampling.grid import labelled_grid

TILE, LINE = 128, 16  # pixels: of a small picture, of its caption


def sheet_of(
    axes: Sequence[Axis], pictures: Mapping[Cell, list[Image.Image]], captions: Mapping[Cell, str]
) -> Image.Image:
    """x across, y down, z one below the other, each under its label."""
    tiles = {cell.place: _tile(pictures[cell], captions.get(cell, "")) for cell in pictures}
    labels = [axis.labels for axis in axes] + [[""]] * (3 - len(axes))
    parts = []
    for z, title in enumerate(labels[2]):
        rows = [[tiles[x, y, z] for x in range(len(labels[0]))] for y in range(len(labels[1]))]
        downwards = labels[1] if len(axes) > 1 else ()
        grid = labelled_grid(rows, downwards, labels[0], tile=1)
        parts.append(beside({title: grid}) if title else grid)
    return stacked(parts)


def _tile(pictures: list[Image.Image], caption: str) -> Image.Image:
    """A cell's pictures side by side, above its caption; small ones enlarged without smoothing."""
    strip = labelled_grid([pictures], tile=TILE)
    if not caption:
        return strip
    height = strip.height + LINE * len(caption.splitlines())
    tile = Image.new("RGB", (strip.width, height), "white")
    tile.paste(strip)
    font = ImageFont.load_default(size=11)
    ImageDraw.Draw(tile).text((0, strip.height), caption, (30, 30, 30), font)
    return tile


def write_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """A row a picture. UserError: disk not writable."""
    names = list(dict.fromkeys(name for row in table for name in row))
    with explain_disk_errors(path), staging(path) as staged:
        with staged.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(table)
        flush(staged)
