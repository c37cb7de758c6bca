"""The resume state: one rolling Lightning checkpoint, and the one before it.

    RUN/resume.ckpt           the newest: trained weights, optimizer, schedule, step
    RUN/resume.previous.ckpt  the one before, kept until the next is complete
    RUN/resume.json           step, size and sha256 of the last few that were written

The list in resume.json is renewed *before* the files are renamed and a file is known by its hash
alone, so that at whatever instant the process dies one of the two files is complete and listed.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from ldm.checkpoint.files import (
    explain_disk_errors,
    flush,
    put_in_place,
    read_json,
    sha256_of,
    staging_path,
    write_json,
)
from ldm.errors import UserError

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, LIST = "resume.ckpt", "resume.previous.ckpt", "resume.json"
LISTED = 3  # the newest, the one before, and the one that the newest replaces


@dataclass(frozen=True)
class ResumePoint:
    """A verified resume state: its file and the number of optimizer steps it has behind it."""

    path: Path
    step: int


def find_resume(run: Path) -> ResumePoint | None:
    """The newest undamaged resume state of a run folder; None when nothing was saved yet.

    Reads each candidate once to verify its sha256. A damaged newest one is passed over with a
    warning; UserError when there are some and none is good.
    """
    run = Path(run)
    listed = {entry["sha256"]: entry for entry in read_json(run / LIST) or []}
    present = [path for path in (run / NEWEST, run / PREVIOUS) if path.exists()]
    for path in present:
        entry = _entry_of(path, listed)
        if entry is not None:
            return ResumePoint(path, int(entry["step"]))
        log.warning("%s is damaged (its size or sha256 is not in %s): passed over", path, LIST)
    if present:
        raise UserError(
            f"every resume state in {run} is damaged; start a new run, or remove "
            f"{', '.join(path.name for path in present)} to start this one over"
        )
    return None


def _entry_of(path: Path, listed: Mapping[str, dict]) -> dict | None:
    """What resume.json says of a file, None when it is not a complete one."""
    size = path.stat().st_size
    if not any(entry["bytes"] == size for entry in listed.values()):
        return None  # no need to read gigabytes of a truncated file
    return listed.get(sha256_of(path))


class _HashingFile:
    """A binary file that remembers the size and sha256 of what was written to it, in order."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class ResumeIO(CheckpointIO):
    """Lightning plugin: writes the resume state without a copy in memory, reads tensors only.

    Lightning's own serialises the whole checkpoint into memory, twice over, before it writes.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write to a staging file beside `path`, flush, keep the one before, rename."""
        path = Path(path)
        with explain_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = staging_path(path)
            with staged.open("wb") as file:
                hashing = _HashingFile(file)
                torch.save(checkpoint, cast(IO[bytes], hashing))
            flush(staged)
            entry = {
                "step": int(checkpoint["global_step"]),
                "bytes": hashing.bytes,
                "sha256": hashing.sha256.hexdigest(),
            }
            listing = path.with_name(LIST)
            write_json(listing, [entry, *(read_json(listing) or [])][:LISTED])
            if path.exists():
                put_in_place(path, path.with_name(PREVIOUS))
            put_in_place(staged, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain containers only (`weights_only` whatever is asked)."""
        mapped = os.name != "nt"  # Windows cannot rename a mapped file
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing is removed: the rolling state replaces itself."""
