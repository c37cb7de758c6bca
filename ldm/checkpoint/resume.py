"""The resume state: one rolling Lightning checkpoint, and the one before it.

    RUN/resume.ckpt           the newest: trained weights, optimizer, schedule, step
    RUN/resume.previous.ckpt  the one before, kept until the next is complete
    RUN/resume.json           step, size and sha256 of the last ones that were written
    RUN/resume.copy.json      the same list, for when the other is damaged
    RUN/resume.damaged.ckpt   one that was found damaged and set aside

A new state is written under a hidden name and read back; then both lists are renewed, and only then
the files renamed. A list is {"states": [{"step", "bytes", "sha256"}, ...]}, sealed, and not used if
it is damaged. A file is known by its hash alone, so that at whatever instant the process dies, and
whichever one file is damaged, one of the two states is complete and listed.
"""

import logging
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from ldm.checkpoint.files import (
    put_in_place,
    read_sealed,
    sha256_of,
    staging,
    write_sealed,
    write_verified,
)
from ldm.errors import UserError

log = logging.getLogger(__name__)

NEWEST, PREVIOUS, DAMAGED = "resume.ckpt", "resume.previous.ckpt", "resume.damaged.ckpt"
LIST, COPY = "resume.json", "resume.copy.json"
# Two states are there. More are listed, since each process that dies between listing a new one and
# renaming it leaves an entry without a file, which must not push out those that have one.
LISTED = 32


@dataclass(frozen=True)
class ResumePoint:
    """A verified resume state: its file and the number of optimizer steps it has behind it."""

    path: Path
    step: int
    damaged: list[Path] = field(default_factory=list)  # newer ones, passed over


class _Damaged(Exception):
    """A file is not a complete resume state; the text says why."""


def find_resume(run: Path) -> ResumePoint | None:
    """The newest undamaged resume state of a run folder; None when nothing was saved yet.

    Reads each candidate once to verify its sha256, and changes nothing. A damaged newest one is
    passed over with a warning; UserError, naming each and why, when there are some and none is
    good.
    """
    run = Path(run)
    entries, reasons = _listed(run), {}
    present = [path for path in (run / NEWEST, run / PREVIOUS) if path.exists()]
    for path in present:
        try:
            step = _entry_of(path, entries)["step"]
        except _Damaged as reason:
            reasons[path] = reason
            continue
        for damaged, why in reasons.items():
            log.warning("%s is damaged: %s; %s, of step %d, is used", damaged, why, path.name, step)
        return ResumePoint(path, step, list(reasons))
    if present:
        listed = "".join(f"\n  - {path.name}: {reason}" for path, reason in reasons.items())
        raise UserError(
            f"no resume state in {run} is good; start a new run, or remove "
            f"{' and '.join(path.name for path in present)} to start this one over:{listed}"
        )
    return None


def set_aside(path: Path) -> None:
    """Rename a damaged state, so that it is neither used nor takes the place of a good one.

    Only the last one found is kept. For the one process that writes.
    """
    aside = path.with_name(DAMAGED)
    put_in_place(path, aside)
    log.warning("%s is set aside as %s; it may be removed", path, aside.name)


def _listed(run: Path) -> list[dict[str, Any]]:
    """The entries of both lists, newest first; none of a list that is damaged."""
    entries: dict[str, dict[str, Any]] = {}
    for name in (LIST, COPY):
        for entry in (read_sealed(run / name) or {}).get("states", []):
            entries.setdefault(entry["sha256"], entry)
    return list(entries.values())


def what_is_lost(run: Path, step: int) -> str:
    """What it costs to end after `step` without saving, and how to go on; reads what is saved."""
    try:
        point = find_resume(run)
    except (UserError, OSError) as error:
        return str(error)
    done = point.step if point else 0
    saved = f"the last save is of step {done}" if point else "nothing was saved yet"
    return f"{saved}, steps lost: {step - done}; go on with: python main.py --resume {run}"


def _entry_of(path: Path, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of a complete file. Raises _Damaged."""
    if not entries:
        raise _Damaged(f"cannot be verified, {LIST} and {COPY} are missing or damaged")
    try:
        size = path.stat().st_size
        if size not in [entry["bytes"] for entry in entries]:  # gigabytes need not be read
            raise _Damaged(f"its size, {size} bytes, is that of no state in {LIST}")
        digest = sha256_of(path)
    except OSError as error:
        raise _Damaged(f"cannot be read: {error.strerror or error}") from error
    for entry in entries:
        if entry["sha256"] == digest:
            return entry
    raise _Damaged(f"its sha256, {digest[:12]}..., is that of no state in {LIST}")


class ResumeIO(CheckpointIO):
    """Lightning plugin: writes the resume state without a copy in memory, reads tensors only.

    Lightning's own serialises the whole checkpoint into memory, twice over, before it writes.
    """

    def __init__(self) -> None:
        self._verified: tuple[int, int, int] | None = None  # the newest, when this wrote it

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside `path`, flush, read back; only then list it and let the one before go.

        UserError: disk full, failing or forbidden; what was saved before is as it was.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staging(path) as staged:
                content = write_verified(staged, lambda file: torch.save(checkpoint, file))
                known = _listed(path.parent)
                self._make_way(path, known)
                entry = {"step": int(checkpoint["global_step"]), **content}
                others = [old for old in known if old["sha256"] != entry["sha256"]]
                for name in (LIST, COPY):
                    write_sealed(path.with_name(name), {"states": [entry, *others][:LISTED]})
                if path.exists():
                    put_in_place(path, path.with_name(PREVIOUS))
            self._verified = _identity(path)
        except OSError as error:
            raise UserError(
                f"cannot save {path}: {error.strerror or error}; make room there; "
                f"{what_is_lost(path.parent, int(checkpoint['global_step']))}"
            ) from error

    def _make_way(self, path: Path, known: list[dict[str, Any]]) -> None:
        """Set the newest aside if it is damaged: it must not replace a good one before it."""
        if path.exists() and _identity(path) != self._verified:
            try:
                _entry_of(path, known)
            except _Damaged as reason:
                log.warning("%s is damaged: %s", path, reason)
                set_aside(path)

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain containers only (`weights_only` whatever is asked).

        UserError for a file that holds anything else: unpickling that would run its code.
        """
        mapped = os.name != "nt"  # Windows cannot rename a mapped file
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines()
            raise UserError(
                f"{path} is no resume state of this program, and what may hold code of others is "
                f"not loaded: {reason[0] if reason else type(error).__name__}; start a new run"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Nothing is removed: the rolling state replaces itself."""


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced, cut or written to."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
