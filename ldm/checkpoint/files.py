"""Writing files so that no reader ever sees half of one; telling damaged from good."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.errors import UserError

CHUNK = 1 << 20  # bytes read at a time when hashing


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def staging_path(path: Path) -> Path:
    """Where `path` is written before it gets its name: beside it, so that the rename is atomic."""
    return path.with_name(f".{path.name}.staging")


def flush(path: Path) -> None:
    """Have the operating system put a file or a folder's entries on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(staged: Path, path: Path) -> None:
    """Rename a flushed file or folder to its name, and flush that name."""
    os.replace(staged, path)
    flush(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, staged, flushed and renamed."""
    staged = staging_path(path)
    staged.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(staged)
    put_in_place(staged, path)


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a UserError that names the place."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            "free some space or choose another folder"
        ) from error
