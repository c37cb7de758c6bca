"""Writing files so that no reader ever sees half of one; telling damaged from good."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypedDict, cast

CHUNK = 1 << 20  # bytes read at a time when hashing
STAGING, REPLACED, REMOVED = ".staging", ".replaced", ".removed"  # ends of hidden names
SEAL = "seal"  # key of a JSON file: sha256 of the rest of it


class Content(TypedDict):
    """What a complete file is known by."""

    bytes: int
    sha256: str  # hexadecimal


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hidden_path(path: Path, ending: str) -> Path:
    """A name beside `path`, where a rename is atomic, that no reader takes for a finished one."""
    return path.with_name(f".{path.name}{ending}")


def staging_path(path: Path) -> Path:
    """Where `path` is written before it gets its name."""
    return hidden_path(path, STAGING)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a folder by way of a hidden name, under which half of it is not taken for a whole."""
    removed = hidden_path(path, REMOVED)
    remove(removed)
    put_in_place(path, removed)
    remove(removed)


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


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A path to write to: it gets the name `path` at the end, and is removed after an error."""
    staged = staging_path(path)
    remove(staged)
    try:
        yield staged
        put_in_place(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            remove(staged)
        raise


class _HashingFile:
    """A binary file that remembers size and sha256 of what was written to it, and its error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.bytes += memoryview(data).nbytes
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_verified(path: Path, write: Callable[[IO[bytes]], object]) -> Content:
    """Have `write` fill a file, flush it to the disk, read it back, and return what it holds.

    OSError: it cannot be written, or what is read is not what was written.
    """
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            write(cast(IO[bytes], hashing))
        except Exception:
            # PyTorch's zip writer buries an error of the disk under one of its own.
            if hashing.error is not None:
                raise hashing.error from None
            raise
    flush(path)
    _forget_cached(path)
    content = Content(bytes=hashing.bytes, sha256=hashing.sha256.hexdigest())
    if path.stat().st_size != content["bytes"] or sha256_of(path) != content["sha256"]:
        raise OSError("what is read back is not what was written, the disk may be failing")
    return content


def _forget_cached(path: Path) -> None:
    """Have the next reader of a flushed file read the disk, where the system can be asked to."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, staged, flushed and renamed."""
    with staging(path) as staged:
        staged.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        flush(staged)


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """As `write_json`, with a sha256 over the content beside it."""
    plain = json.loads(json.dumps(content))  # as it will be read
    write_json(path, {**plain, SEAL: _seal_of(plain)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` was given; None when the file is missing or damaged in whatever way."""
    content = read_json(path)
    if not isinstance(content, dict):
        return None
    seal = content.pop(SEAL, None)
    return content if seal == _seal_of(content) else None


def _seal_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def clear_leftovers(run: Path) -> None:
    """Remove what killed processes left under hidden names in a run folder and those inside it.

    A replaced snapshot whose successor did not come gets its name back. For the one process that
    writes there, before it does.
    """
    for path in sorted([*run.glob(".*"), *run.glob("*/.*")]):
        if path.name.endswith(REPLACED):
            place = path.with_name(path.name[1 : -len(REPLACED)])
            if not place.exists():
                put_in_place(path, place)
        if path.name.endswith((STAGING, REPLACED, REMOVED)):
            remove(path)
