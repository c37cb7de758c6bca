"""Class images: what the frozen base makes of the class prompt, kept for prior preservation.

Pictures are made in fixed batches: batch k is pictures k * batch, k * batch + 1, ... and the last
one is computed at full size too. A batch that is not wholly there is made again wholly, so neither
an interruption nor a larger count changes a picture by a bit (same machine, same batch size).
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.images import size_of
from ldm.data.ledger import Ledger
from ldm.errors import UserError, explain_disk_errors
from ldm.models.base import BaseModel
from ldm.randomness import seed_of
from ldm.sampling.generate import Progress, generate
from ldm.sampling.metadata import png_info

log = logging.getLogger(__name__)

_ABOUT = "class_images.json"
_ELSEWHERE = "set prior.root to a folder with room that may be written"


def class_image_settings(
    seed: int, scale: float, steps: int, sampler: str, size: int, bits: str | None = None
) -> dict[str, Any]:
    """Return what, beside base and prompt, decides what the pictures are; size in pixels.

    bits: of the base's weights, where they are quantised.
    """
    # float: 5 and 5.0 are the same setting, but not the same text to hash.
    settings = {
        "seed": seed,
        "scale": float(scale),
        "steps": steps,
        "sampler": sampler,
        "size": size,
    }
    return {**settings, "bits": bits} if bits else settings


def class_image_folder(
    root: str | Path, fingerprint: str, prompt: str, settings: Mapping[str, Any]
) -> Path:
    """Return the folder for the class images of one base, prompt and sampler settings.

    `settings` is that of `class_image_settings`. The name is the prompt, for the eye, and a hash
    over all three: a changed base, prompt or setting never reuses another's pictures, and runs
    with equal ones share them.
    """
    identity = {"fingerprint": fingerprint, "prompt": prompt, "settings": dict(settings)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return Path(root) / f"{words or 'class'}-{digest[:12]}"


@dataclass(frozen=True)
class ClassImageMaker:
    """Makes class images in batches, for the disk and for the memory alike.

    `settings` are those of `class_image_settings`; with base and prompt they decide what image k
    is, up to rounding (1/255); with `batch` and the machine's threads, to the bit. UserError, at
    once: settings or batch impossible.
    """

    base: BaseModel
    prompt: str
    settings: Mapping[str, Any]
    batch: int = 8

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"prior.sampling_batch: {self.batch} is not at least 1")
        self._sample([])  # of nothing: refuses what cannot be sampled with

    @property
    def about(self) -> dict[str, Any]:
        """Everything that all these images share, as plain values."""
        base = self.base
        model = {"model": base.source, "fingerprint": base.fingerprint}
        return {
            "prompt": self.prompt,
            **model,
            "clip_skip": base.reading.clip_skip,
            **self.settings,
        }

    def make(self, number: int) -> list[tuple[Image.Image, dict[str, Any]]]:
        """Make batch `number`, images number * batch and so on, each with its provenance."""
        about, size = self.about, self.settings["size"]
        places = range(number * self.batch, (number + 1) * self.batch)
        seeds = [seed_of(about["seed"], "class_image", index=place) for place in places]
        own = {"negative": "", "width": size, "height": size, "prior_seed": about["seed"]}
        return [
            (picture, {**about, **own, "seed": seed})
            for picture, seed in zip(self._sample(seeds), seeds, strict=True)
        ]

    def _sample(self, seeds: list[int]) -> Iterator[Image.Image]:
        sampling = {key: self.settings[key] for key in ("scale", "steps", "sampler")}
        size, prompts = self.settings["size"], [self.prompt] * len(seeds)
        return generate(
            self.base, prompts, seeds, height=size, width=size, batch=self.batch, **sampling
        )


def make_class_images(
    maker: ClassImageMaker,
    count: int,
    root: str | Path,
    *,
    rank: int = 0,
    world: int = 1,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Make what is missing of `count` class images below `root`; return all that are there.

    More than `count` are returned if another run asked for more. With
    `world` processes each makes every `world`-th batch; the caller waits for all of them, then
    `class_images(folder)` (or calling this again) gives the full list. ledger: see `is_whole`.
    progress(done, in all) counts this process's pictures. UserError: count below 1, disk not
    writable.
    """
    if count < 1:
        raise UserError(f"prior.count: {count} is not at least 1")
    batch, size = maker.batch, maker.settings["size"]
    folder = class_image_folder(root, maker.base.fingerprint, maker.prompt, maker.settings)
    _prepare(folder, maker.about)
    missing = _missing_batches(folder, count, batch, size, rank, world, ledger)
    total, done = sum(map(len, missing.values())), 0
    # Written by a thread, while the next batch is drawn: a device need not wait for it.
    with ThreadPoolExecutor(1, "class images") as writer:
        writing: list[Future[None]] = []
        for wanted in [*missing.values(), range(0)]:
            made = maker.make(wanted.start // batch) if wanted else []
            for written in writing:
                written.result()
                done += 1
                if progress is not None:
                    progress(done, total)
            writing = [
                writer.submit(_save, picture, _path(folder, index), {**about, "index": index})
                for index, (picture, about) in zip(wanted, made, strict=False)  # no padding
            ]
    return class_images(folder, size, ledger)


def class_images(folder: Path, size: int | None = None, ledger: Ledger | None = None) -> list[Path]:
    """Return the whole pictures in a class-image folder, in order; damaged ones are left out."""
    paths = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    return [path for path in paths if is_whole(path, size, ledger)]


def count_missing(
    folder: Path, count: int, batch: int, size: int, ledger: Ledger | None = None
) -> int:
    """Return how many pictures `make_class_images` would make here, all processes together."""
    return sum(map(len, _missing_batches(folder, count, batch, size, 0, 1, ledger).values()))


def _missing_batches(
    folder: Path,
    count: int,
    batch: int,
    size: int,
    rank: int,
    world: int,
    ledger: Ledger | None,
) -> dict[int, range]:
    """Return {first index: indices to write} for this rank's batches that are not wholly there.

    The share is a matter of the batch's number alone, never of what another rank has written by
    now, so no batch is made twice or by nobody.
    """
    missing = {}
    for number, first in enumerate(range(0, count, batch)):
        wanted = range(first, min(first + batch, count))
        there = (is_whole(_path(folder, index), size, ledger) for index in wanted)
        if number % world == rank and not all(there):
            missing[first] = wanted
    return missing


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.png"


def is_whole(path: Path, size: int | None = None, ledger: Ledger | None = None) -> bool:
    """Decode the picture: a truncated or damaged one, or one of another size, is not whole.

    ledger: of pictures that were decoded before, and did not change.
    """
    if not path.exists():
        return False
    try:
        found = size_of(path) if ledger is None else ledger.size(path)
    except UserError as error:
        log.warning("picture %s is damaged and will be made again: %s", path, error.__cause__)
        return False
    return size is None or found == (size, size)


def _prepare(folder: Path, about: Mapping[str, Any]) -> None:
    """Create the folder and say in it what the pictures are."""
    with explain_disk_errors(folder, _ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _ABOUT).is_file():
            staged = folder / f".{_ABOUT}.{os.getpid()}"
            staged.write_text(json.dumps(about, indent=2) + "\n", "utf-8")
            staged.replace(folder / _ABOUT)


def _save(picture: Image.Image, path: Path, provenance: dict[str, Any]) -> None:
    """Write beside the place and rename: a picture is there whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_disk_errors(path, _ELSEWHERE):
        try:
            picture.save(staged, format="PNG", pnginfo=png_info(provenance))
            staged.replace(path)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
