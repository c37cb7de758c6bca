"""Encoded pictures on disk, in one file for all that one VAE made by one transform.

    KEY.latents   mean, std and sizes of one picture after the other, float32
    KEY.index     of each: the picture's digest, where it lies, its shape and checksum

Pictures are added at the end, so that a kill costs no more than the one it met; an index entry
comes after what it is of. Nothing is ever moved or cut off: what is there can be mapped into memory
by many processes, and takes none of it but what the operating system can drop again.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from ldm.data.records import Records, explained, locked
from ldm.data.sizes import SIZES

log = logging.getLogger(__name__)

# Mean and std [V, C, h, w], sizes [V, 6], of one picture's variants.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
ENTRY = np.dtype(
    [("picture", "u1", 32), ("sha256", "u1", 32), ("offset", "<u8"), ("shape", "<u4", 4)]
)
ALIGNED = 64  # bytes


class Moments(Sequence[torch.Tensor]):
    """N tensors [V, C, h, w], float32: each is a view of a mapped file, made when it is asked for.

    What is asked for may be changed without the file changing.
    """

    def __init__(self, mapped: torch.Tensor, starts: np.ndarray, shapes: np.ndarray) -> None:
        """mapped: all the file's numbers; starts [N]: the first one's place; shapes [N, 4]."""
        self._mapped, self._starts, self._shapes = mapped, starts, shapes

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, place: int | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        start, shape = int(self._starts[place]), self._shapes[place].tolist()
        return self._mapped[start : start + int(np.prod(shape))].view(shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._shapes.tolist()]


class Shelf:
    """The pictures that lie under one key; each has its checksum, and a damaged one is none."""

    def __init__(self, folder: Path, key: str, digests: Sequence[str]) -> None:
        """Finds those with these digests, and verifies them.

        Raises UserError where the folder cannot be made or read.
        """
        self.folder, self.digests = folder, digests
        self._file, self._index = folder / f"{key}.latents", Records(folder / f"{key}.index", ENTRY)
        self._entries: dict[str, np.ndarray] = {}  # by digest, [1] each
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._find()

    def missing(self) -> list[str]:
        """The digests of which nothing lies here."""
        return [digest for digest in self.digests if digest not in self._entries]

    def put(self, digest: str, encoded: Encoded) -> None:
        """Write at the end. Raises UserError where the disk cannot be written."""
        entry = np.zeros(1, ENTRY)
        entry["picture"], entry["shape"] = _bytes_of(digest), encoded[0].shape
        content = b"".join(part.contiguous().numpy().tobytes() for part in encoded)
        entry["sha256"] = _bytes_of(_checksum(entry[0], content))
        with explained(self.folder), locked(self.folder):
            entry["offset"] = self._append(content)
            self._index.add(entry)  # neither is flushed: the checksum catches what a crash loses
        self._entries[digest] = entry

    def moments(self, digests: Sequence[str]) -> tuple[Moments, Moments, torch.Tensor]:
        """Means, deviations and sizes [N, V, 6] of N of the pictures, all of which are here."""
        entries = np.concatenate([self._entries[digest] for digest in digests])
        numbers = self._file.stat().st_size // 4
        mapped = torch.from_file(str(self._file), shared=False, size=numbers, dtype=torch.float32)
        shapes, starts = entries["shape"], (entries["offset"] // 4).astype(np.int64)
        count = shapes.astype(np.int64).prod(axis=1)
        sizes = torch.stack(
            [
                mapped[end : end + int(shape[0]) * SIZES].view(-1, SIZES)
                for end, shape in zip((starts + 2 * count).tolist(), shapes, strict=True)
            ]
        )
        return Moments(mapped, starts, shapes), Moments(mapped, starts + count, shapes), sizes

    def _find(self) -> None:
        entries = self._index.read()
        places = {entry.tobytes().hex(): place for place, entry in enumerate(entries["picture"])}
        wanted = sorted(places[digest] for digest in {*self.digests} & places.keys())
        if not wanted:
            return
        damaged = len(wanted)
        if self._file.exists():
            with self._file.open("rb") as file:
                for place in wanted:  # in the file's order; one at a time in memory
                    entry = entries[place]
                    file.seek(int(entry["offset"]))
                    if _checksum(entry, file.read(_length(entry))) == entry["sha256"].tobytes().hex():
                        self._entries[entry["picture"].tobytes().hex()] = entries[place : place + 1]
                        damaged -= 1
        if damaged:
            log.warning(
                "cached latents %s: %d of %d are damaged and made again",
                *(self._file, damaged, len(wanted)),
            )

    def _append(self, content: bytes) -> int:
        """Write whole or not at all; where it begins."""
        self._file.touch()
        with self._file.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            begin = -(-end // ALIGNED) * ALIGNED
            try:
                file.seek(begin)
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise
        return begin


def _bytes_of(digest: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest), "u1")


def _length(entry: np.void) -> int:
    """Bytes of a picture's numbers. (Of a damaged entry, nobody's: the checksum disagrees.)"""
    variants, *sides = entry["shape"].tolist()
    return 4 * variants * (2 * int(np.prod(sides)) + SIZES)


def _checksum(entry: np.void, content: bytes) -> str:
    return hashlib.sha256(entry["shape"].tobytes() + content).hexdigest()
