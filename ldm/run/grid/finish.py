"""A grid's sheet and table, of the pictures that lie in its folder."""

import argparse
from pathlib import Path

from PIL import Image

from ldm.run.grid.axes import Axis, Cell
from ldm.run.grid.draw import Request
from ldm.run.grid.scores import caption, measurer_of, scores_of
from ldm.run.grid.sheet import sheet_of, write_table
from ldm.sampling.metadata import read_settings
from ldm.training.samples import save_picture

SHEET, TABLE = "sheet.png", "table.csv"


def finish(args: argparse.Namespace, axes: list[Axis], asked: dict[Cell, list[Request]]) -> Path:
    """Measure what can be measured, write both files, return the sheet's path.

    UserError: a picture is damaged, disk not writable.
    """
    folder: Path = args.out
    requests = [one for own in asked.values() for one in own]
    paths = [folder / one.file for one in requests]
    told = [read_settings(path) for path in paths]
    prompts = [settings["prompt"] for settings in told]
    measurer = measurer_of(args.run, args.device or "cpu") if args.run else None
    scores = scores_of(measurer, paths, prompts) if measurer else [{} for _ in paths]
    table = [
        {
            **{f"axis/{kind}": value for kind, value in one.cell.values.items()},
            "file": one.file,
            "prompt": settings["prompt"],
            "seed": one.seed,
            **score,
        }
        for one, settings, score in zip(requests, told, scores, strict=True)
    ]
    write_table(folder / TABLE, table)
    by_request = dict(zip(requests, scores, strict=True))
    pictures = {cell: [_opened(folder / one.file) for one in own] for cell, own in asked.items()}
    captions = {cell: caption([by_request[one] for one in own]) for cell, own in asked.items()}
    shown = {axis.kind: list(axis.values) for axis in axes}
    about = {"prompt": args.prompt[0], "axes": shown, "model": told[0].get("model")}
    save_picture(sheet_of(axes, pictures, captions), folder / SHEET, about)
    return folder / SHEET


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
