"""A copy of the pictures with all that can be mended mended; the originals stay as they are."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.data.images import Colour, load_picture, open_upright, transparency_of
from ldm.data.masks import mask_beside
from ldm.errors import UserError, explain_disk_errors
from ldm.run.preflight.pictures import Look
from ldm.run.prepare import HELDOUT

JPEG = (".jpg", ".jpeg")


def check_clean_folder(folder: Path) -> None:
    """UserError unless `folder` is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--write {folder}: it holds something; give a new folder, or an empty one")


def write_clean(looks: Sequence[Look], folder: Path, background: Colour) -> list[str]:
    """Write the usable pictures upright and RGB, with their captions and masks; what was done.

    JPEG stays JPEG (quality 95, no colour subsampling), all others become PNG, in full size; a
    picture's transparency becomes its mask, unless it has one. `heldout/` comes along as it is.
    UserError: the folder holds something, cannot be written, or nothing would be in it.
    """
    check_clean_folder(folder)
    usable = [look.path for look in looks if not look.is_dropped]
    if not usable:
        raise UserError(f"--write {folder}: none of the {len(looks)} pictures is usable")
    lines, taken = [], set[str]()
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in usable:
            suffix = ".jpg" if path.suffix.lower() in JPEG else ".png"
            stem = path.stem if path.stem not in taken else f"{path.stem}-{path.suffix[1:]}"
            taken.add(stem)
            _write(path, folder / f"{stem}{suffix}", background)
            if f"{stem}{suffix}" != path.name:
                lines.append(f"{path.name} is {stem}{suffix}")
        heldout = usable[0].parent / HELDOUT
        if heldout.is_dir():
            shutil.copytree(heldout, folder / HELDOUT)
    for look in looks:
        if look.is_dropped:
            lines.append(f"left out: {look.path.name}: {'; '.join(look.concerns.values())}")
    return [f"{len(usable)} of {len(looks)} pictures written to {folder}", *lines]


def _write(path: Path, target: Path, background: Colour) -> None:
    picture = load_picture(path, background)
    if target.suffix == ".jpg":
        picture.save(target, quality=95, subsampling=0)
    else:
        picture.save(target)
    caption, mask = path.with_suffix(".txt"), mask_beside(path)
    if caption.is_file():
        shutil.copyfile(caption, target.with_suffix(".txt"))
    own = target.with_suffix(".mask.png")
    if mask is not None:
        shutil.copyfile(mask, own)
    elif (alpha := _alpha(path)) is not None:
        alpha.save(own)


def _alpha(path: Path) -> Image.Image | None:
    with open_upright(path) as (image, _):
        return transparency_of(image)
