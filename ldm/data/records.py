"""A file of records of one size, added to at its end, which tells damaged ones from good."""

import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import filelock
import numpy as np

from ldm.errors import explain_disk_errors

CHECK = 4  # bytes: CRC-32 of what stands before them


class Records:
    """Rows of one NumPy type in a file. Whoever adds to it does so `locked`.

    A row that a crash cut off is written over by the next, a damaged one is passed over.
    """

    def __init__(self, path: Path, form: np.dtype) -> None:
        self.path, self.form = path, form
        self._size = form.itemsize + CHECK

    def read(self) -> np.ndarray:
        """All undamaged rows, [N] of the type, in the order they were added; of no file, none."""
        try:
            content = memoryview(self.path.read_bytes())
        except FileNotFoundError:
            content = memoryview(b"")
        rows = [content[start : start + self._size] for start in range(0, len(content), self._size)]
        good = [row[:-CHECK] for row in rows if row[-CHECK:] == _check(row[:-CHECK])]
        return np.frombuffer(b"".join(good), self.form)

    def add(self, rows: np.ndarray) -> None:
        """Write these after the last whole row. OSError where that cannot be."""
        plain = [row.tobytes() for row in rows.astype(self.form)]
        self.path.touch()
        with self.path.open("r+b") as file:
            file.seek(file.seek(0, os.SEEK_END) // self._size * self._size)
            file.write(b"".join(row + _check(row) for row in plain))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process adds to what lies in the cache folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock"):
        yield


def explained(folder: Path) -> AbstractContextManager[None]:
    """An error of the disk as a UserError that names the cache folder and what to do."""
    return explain_disk_errors(
        f"latent cache {folder}",
        "make room, choose another folder with data.cache=FOLDER, or data.cache=null to do without",
    )


def _check(row: bytes | memoryview) -> bytes:
    return zlib.crc32(row).to_bytes(CHECK, "little")
