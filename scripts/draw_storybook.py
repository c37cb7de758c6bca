"""Write the example pictures of the storybook world.

    python scripts/draw_storybook.py                       # data/subjects/{robot_volt,dog_pepper}
    python scripts/draw_storybook.py --subject car_comet random:7 random:7:cat --out pictures
    python scripts/draw_storybook.py --sheet world.png     # a sheet of random captioned pictures

For each subject: five training pictures in OUT/NAME, twenty held-out ones in
OUT/NAME/heldout, and a preview of both in OUT/NAME.png. "random:SEED[:NOUN]" is a subject
drawn at random, always the same for a seed; with --captions each picture has its text beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status
from ldm.storybook import caption, random_scene, render
from ldm.storybook.folder import find_subject, write_subject

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


def draw_subject(name: str, out: Path, captions: bool) -> None:
    """The folder of one subject and the preview beside it."""
    folder = write_subject(find_subject(name), out, captions)
    paths = sorted(folder.glob("*.png")) + sorted((folder / "heldout").glob("*.png"))
    preview = paste_grid([Image.open(path) for path in paths], columns=5, zoom=2).quantize(256)
    preview.save(folder.with_name(f"{folder.name}.png"), optimize=True)


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


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/subjects"), help="output folder")
    parser.add_argument(
        "--subject",
        nargs="+",
        default=SHIPPED,
        metavar="NAME",
        help="a shipped subject's name or random:SEED[:NOUN] (default: robot_volt dog_pepper)",
    )
    parser.add_argument("--captions", action="store_true", help="write x.txt beside each x.png")
    parser.add_argument("--sheet", type=Path, help="write only a sheet of random pictures here")
    parser.add_argument("--count", type=int, default=48, help="pictures on the sheet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sheet")
    return parser.parse_args(words)


def draw(arguments: argparse.Namespace) -> None:
    if arguments.sheet:
        write_sheet(arguments.sheet, arguments.count, arguments.seed)
        return
    for name in arguments.subject:
        draw_subject(name, arguments.out, arguments.captions)


def main(words: list[str] | None = None) -> int:
    """Command line; see the module's text."""
    arguments = parse(words)
    return exit_status(lambda: draw(arguments))


if __name__ == "__main__":
    sys.exit(main())
