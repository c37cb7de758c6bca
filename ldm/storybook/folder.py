"""A subject as a folder of pictures, and subjects by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.errors import UserError
from ldm.storybook.subjects import (
    SUBJECTS,
    Subject,
    heldout_scenes,
    random_subject,
    training_scenes,
)
from ldm.storybook.world import NOUNS, render


def find_subject(name: str) -> Subject:
    """A shipped subject by its name, or the one that "random:SEED" or "random:SEED:NOUN" draws.

    UserError for anything else.
    """
    if name in SUBJECTS:
        return SUBJECTS[name]
    kind, _, rest = name.partition(":")
    seed, _, noun = rest.partition(":")
    if kind != "random" or not (seed.isascii() and seed.isdecimal()):
        raise UserError(
            f"subject {name!r}: give random:SEED, random:SEED:NOUN or one of {', '.join(SUBJECTS)}"
        )
    if ":" in rest and noun not in NOUNS:
        raise UserError(f"subject {name!r}: no class {noun!r}; classes are {', '.join(NOUNS)}")
    return random_subject(np.random.default_rng(int(seed)), noun or None)


def write_subject(subject: Subject, out: Path, captions: bool = False) -> Path:
    """Write OUT/NAME/00.png ... (training) and OUT/NAME/heldout/00.png ...; OUT/NAME is returned.

    With `captions` each picture x.png has its text, with [V] for the identifier, in x.txt.
    Always the same bytes for a subject; each file is there whole or not at all, and one that is
    there already is not touched, so that several processes may write the same folder.
    """
    folder = out / subject.name
    for place, scenes in (
        (folder, training_scenes(subject)),
        (folder / "heldout", heldout_scenes(subject)),
    ):
        place.mkdir(parents=True, exist_ok=True)
        for i, (scene, text) in enumerate(scenes):
            _put(place / f"{i:02d}.png", _png(render(scene)))
            if captions:
                _put(place / f"{i:02d}.txt", f"{text}\n".encode())
    return folder


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _put(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    staging.replace(path)
