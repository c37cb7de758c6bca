"""Pictures into a folder, each beside those that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import explain_disk_errors
from ldm.sampling.grid import labelled_grid
from ldm.sampling.metadata import png_info


def first_number(folder: Path) -> int:
    """Make the folder; return the number after the highest that a picture in it begins with."""
    with explain_disk_errors(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        starts = [path.name.removeprefix("grid-")[:5] for path in folder.glob("*.png")]
    return max((int(start) + 1 for start in starts if start.isdecimal()), default=0)


def save(picture: Image.Image, path: Path, settings: Mapping[str, Any]) -> Path:
    """Write a PNG with its settings. UserError: disk not writable."""
    with explain_disk_errors(f"--out {path}"):
        picture.save(path, pnginfo=png_info(settings))
    return path


def save_grid(
    made: Sequence[Image.Image],
    path: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> Path:
    """Write the sheet of all pictures, prompts in rows and seeds in columns."""
    rows = [made[start : start + len(seeds)] for start in range(0, len(made), len(seeds))]
    shared = {"prompt": "\n".join(prompts), "prompts": [*prompts], "seeds": [*seeds]}
    grid = labelled_grid(rows, prompts, [f"seed {seed}" for seed in seeds])
    return save(grid, path, {**shared, **settings})
