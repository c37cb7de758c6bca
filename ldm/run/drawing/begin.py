"""Pictures to begin from, from the command line; what a picture tells of them."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.checkpoint.files import sha256_of
from ldm.data.images import load_picture
from ldm.errors import UserError
from ldm.models.base import BaseModel
from ldm.sampling.image import Hires, Start, fitted

STRENGTH, HIRES_STRENGTH = 0.7, 0.6
FILES = ("init_image", "mask")


@dataclass
class Begin:
    """What is begun from. told: for a picture's settings, plain values."""

    start: Start | None
    hires: Hires | None
    told: dict[str, Any]


def begin_of(args: argparse.Namespace, size: tuple[int, int]) -> Begin:
    """--init-image, --mask and --hires, for pictures of this size.

    UserError: a file that is no picture, a mask of another size.
    """
    told: dict[str, Any] = {}
    start = hires = None
    if args.init_image:
        strength = STRENGTH if args.strength is None else args.strength
        picture = load_picture(args.init_image)
        mask = _mask_of(args.mask, picture) if args.mask else None
        start = Start(fitted(picture, size), strength, fitted(mask, size) if mask else None)
        told["strength"] = strength
    if args.hires:
        strength = HIRES_STRENGTH if args.hires_strength is None else args.hires_strength
        hires = Hires(args.hires, strength)
        told |= {"hires": args.hires, "hires_strength": strength}
    for key in FILES:
        if path := getattr(args, key):
            told[f"{key}_sha256"] = sha256_of(path)
    return Begin(start, hires, told)


def size_of_start(path: Path, resolution: int, base: BaseModel) -> tuple[int, int]:
    """Width and height of what is drawn from a picture: its form, the short side `resolution`."""
    sides = load_picture(path).size
    width, height = (
        max(1, round(side * resolution / min(sides) / base.multiple)) * base.multiple
        for side in sides
    )
    return width, height


def check_files(path: Path, options: dict[str, Any], settings: dict[str, Any]) -> None:
    """UserError where what a picture was begun from is gone, or another picture now."""
    for key in FILES:
        if key in options:
            file = Path(options[key])
            if not file.is_file() or sha256_of(file) != settings.get(f"{key}_sha256"):
                option = "--" + key.replace("_", "-")
                what = "changed since" if file.is_file() else "is gone"
                raise UserError(f"--from-png {path}: its {file} {what}; give {option} FILE")
            options[key] = file


def _mask_of(path: Path, picture: Image.Image) -> Image.Image:
    mask = load_picture(path).convert("L")
    if mask.size != picture.size:
        raise UserError(
            f"--mask {path} is {mask.width} x {mask.height} pixels, the picture "
            f"{picture.width} x {picture.height}: they must be of one size"
        )
    return mask
