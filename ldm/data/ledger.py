"""What was found in picture files when they were last read, so that a start need not read them all.

A file is taken for unchanged while its path, inode, size, time of change and time of status change
are: the last one no program can set, so that a picture that is replaced, even by one of the same
size and with its time set back, is read anew. A file that was changed just now is not written down,
since it could be changed again within the clock's grain.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm.data.images import Size, load_with_size
from ldm.data.records import Records, explained, locked
from ldm.errors import UserError

NAME = "pictures.ledger"
SETTLED = 2e9  # ns; file systems' clocks tick in up to 2 s
UNSEEN = (0, 0)  # the size of a picture that was not decoded
ROW = np.dtype([("file", "u1", 16), ("sha256", "u1", 32), ("size", "<u4", 2)])


class Look(NamedTuple):
    """What a file holds."""

    sha256: bytes
    size: Size  # upright; UNSEEN: nobody decoded it


class Ledger:
    """Digests and sizes of picture files, kept in a folder or, where there is none, read each time.

    In memory it is only until it is saved.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._known: dict[bytes, Look] | None = None
        self._new: dict[bytes, Look] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's bytes, 64 hex digits. Raises UserError where it cannot be read."""
        return self._look(path, decode=False).sha256.hex()

    def size(self, path: Path) -> Size:
        """Width and height, upright, of a picture that can be decoded, all of it; else UserError."""
        return self._look(path, decode=True).size

    def save(self) -> None:
        """Write down what is new, and free the memory. UserError where the disk is not writable."""
        if self.folder is not None and self._new:
            rows = np.zeros(len(self._new), ROW)
            for row, (file, look) in zip(rows, self._new.items(), strict=True):
                row["file"] = np.frombuffer(file, "u1")
                row["sha256"] = np.frombuffer(look.sha256, "u1")
                row["size"] = look.size
            with explained(self.folder), locked(self.folder):
                Records(self.folder / NAME, ROW).add(rows)
        self._known, self._new = None, {}

    def _look(self, path: Path, decode: bool) -> Look:
        file, settled = _identity(path)
        look = self._new.get(file) or self._read().get(file)
        if look is None or (decode and look.size == UNSEEN):
            size = load_with_size(path, short_side=1)[1] if decode else UNSEEN
            look = Look(bytes.fromhex(digest_of(path)), size)
            if settled and self.folder is not None:
                self._new[file] = look
        return look

    def _read(self) -> dict[bytes, Look]:
        if self._known is None:
            rows = np.empty(0, ROW)
            if self.folder is not None:
                with explained(self.folder):
                    rows = Records(self.folder / NAME, ROW).read()
            sizes = [(int(width), int(height)) for width, height in rows["size"]]
            looks = map(Look, (digest.tobytes() for digest in rows["sha256"]), sizes)
            self._known = dict(zip((file.tobytes() for file in rows["file"]), looks, strict=True))
        return self._known


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror}") from error


def _identity(path: Path) -> tuple[bytes, bool]:
    """What an unchanged file is known by, 16 bytes, and whether its last change is long over."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"picture {path} does not exist") from None
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror}") from error
    times = (seen.st_mtime_ns, seen.st_ctime_ns)
    facts = (os.path.abspath(path), seen.st_ino, seen.st_size, *times)
    file = hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()
    return file, time.time_ns() - max(times) > SETTLED
