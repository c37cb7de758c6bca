"""Write the example pictures of the storybook world.

    python scripts/draw_storybook.py                       # data/subjects/{robot_volt,dog_pepper}
    python scripts/draw_storybook.py --sheet world.png     # a sheet of random captioned pictures

For each subject: five training pictures in OUT/NAME, twenty held-out ones in
OUT/NAME/heldout, and a preview of both in OUT/NAME.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.storybook import (
    SUBJECTS,
    caption,
    heldout_scenes,
    random_scene,
    render,
    training_scenes,
)

SHIPPED = ("robot_volt", "dog_pepper")


def paste_grid(
    pictures: list[Image.Image], columns: int, zoom: int, footer: int = 0
) -> Image.Image:
    """Pictures on a white sheet, row by row, with `footer` pixels free below each."""
    size = pictures[0].width * zoom
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (size + 6) + 6, rows * (size + footer + 6) + 6), "white")
    for i, picture in enumerate(pictures):
        place = (6 + i % columns * (size + 6), 6 + i // columns * (size + footer + 6))
        sheet.paste(picture.resize((size, size), Image.Resampling.BICUBIC), place)
    return sheet


def write_subject(name: str, out: Path) -> None:
    """Training pictures, held-out pictures and the preview of one shipped subject."""
    subject, folder = SUBJECTS[name], out / name
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    training = [render(scene) for scene, _ in training_scenes(subject)]
    heldout = [render(scene) for scene, _ in heldout_scenes(subject)]
    for i, picture in enumerate(training):
        picture.save(folder / f"{i:02d}.png")
    for i, picture in enumerate(heldout):
        picture.save(folder / "heldout" / f"{i:02d}.png")
    preview = paste_grid(training + heldout, columns=5, zoom=2).quantize(256)
    preview.save(out / f"{name}.png", optimize=True)


def write_sheet(path: Path, count: int, seed: int) -> None:
    """A sheet of `count` random world pictures with their captions."""
    rng, columns, zoom, footer = np.random.default_rng(seed), 6, 3, 44
    scenes = [random_scene(rng) for _ in range(count)]
    sheet = paste_grid([render(scene) for scene in scenes], columns, zoom, footer)
    draw, size = ImageDraw.Draw(sheet), 64 * zoom
    for i, scene in enumerate(scenes):
        lines, words = [""], caption(scene, rng).split()
        for word in words:
            if len(lines[-1]) + len(word) > 30:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        place = (8 + i % columns * (size + 6), 8 + size + i // columns * (size + footer + 6))
        draw.text(place, "\n".join(lines), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/subjects"), help="output folder")
    parser.add_argument("--sheet", type=Path, help="write only a sheet of random pictures here")
    parser.add_argument("--count", type=int, default=48, help="pictures on the sheet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sheet")
    arguments = parser.parse_args()
    if arguments.sheet:
        write_sheet(arguments.sheet, arguments.count, arguments.seed)
        return
    for name in SHIPPED:
        write_subject(name, arguments.out)


if __name__ == "__main__":
    main()
