"""Pictures to latents, once: the posterior's mean and deviation, in memory and on disk.

Beside them lie the numbers that SDXL is told of each picture's size.

The VAE is frozen, so nothing but the posterior *sample* changes from step to step, and that is
drawn in training from what lies here: mean + std * noise.

The disk cache holds one safetensors file per picture, named by what its content depends on: the
picture's bytes, the transform and the VAE. An edited picture or another model never meets a stale
file, and a damaged one (its checksum disagrees) is encoded again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ldm.data.buckets import bucket_for, enlargement
from ldm.data.encoding import encode_pixels
from ldm.data.images import Box, Colour, Crop, Size, crop_box, load_with_size, resize_box
from ldm.data.sizes import SIZES, sizes_of_crop
from ldm.errors import UserError
from ldm.randomness import generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

FORMAT = 2  # raise it when the meaning of a cached file changes

Progress = Callable[[int, int], None]
# Mean and std [V, C, h, w], sizes [V, 6], of one picture's variants.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Latents:
    """Posterior moments of N pictures in V variants each, scaled as the UNet expects them.

    Height and width, [h, w], are each picture's own.
    """

    mean: list[torch.Tensor]  # N of [V, C, h, w], float32, CPU
    std: list[torch.Tensor]  # N of [V, C, h, w], float32, CPU, >= 0
    sizes: torch.Tensor  # [N, V, 6], float32, CPU: see `ldm.data.sizes`
    names: list[str]  # N file names
    mask: list[torch.Tensor] | None = None  # N of [V, 1, h, w], float32, CPU, 0..1: the subject

    def __post_init__(self) -> None:
        means, stds = ([tuple(one.shape) for one in each] for each in (self.mean, self.std))
        sizes = tuple(self.sizes.shape)
        fit = means == stds and sizes == (len(self.names), self.variants, SIZES)
        if not fit or [shape[0] for shape in means] != [self.variants] * len(self.names):
            raise ValueError(
                f"{len(self.names)} names, mean {means}, std {stds}, sizes {sizes} do not belong "
                "together"
            )
        masks = [tuple(one.shape) for one in self.mask or ()]
        if self.mask is not None and masks != [(v, 1, *grid) for v, _, *grid in means]:
            raise ValueError(f"masks {masks} do not fit latents {means}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def variants(self) -> int:
        return self.sizes.shape[1]


@dataclass(frozen=True)
class Transform:
    """How a picture becomes V tensors of one size; variants 2k and 2k + 1 are mirror images."""

    resolution: int
    crop: Crop = "center"
    crops: int = 1  # how many random crops; of centre crops there is one
    mirror: bool = False
    background: Colour = (255, 255, 255)
    seed: int = 0
    multiple: int | None = None  # of a bucket's sides, see `bucket_for`; None: squares
    enlarge: bool = False  # of buckets: pictures that are small

    def __post_init__(self) -> None:
        if self.resolution < 1 or self.crops < 1:
            raise UserError(
                f"resolution and crops must be at least 1, got {self.resolution} and {self.crops}"
            )

    def size_of(self, picture: Size) -> Size:
        """What a picture becomes, both width and height in pixels."""
        if self.multiple is None:
            return self.resolution, self.resolution
        return bucket_for(picture, self.resolution, self.multiple, self.enlarge)

    def variants(self, seen: Size, whole: Size, digest: str) -> list[tuple[Box, bool]]:
        """Crop box and mirror flag of each variant of a picture, `whole` pixels wide and high.

        seen: the size that the boxes are made of: `whole`, or that of a smaller decoding. Crops
        depend on the picture's content, so that adding a picture moves no other's.
        """
        form = self.size_of(whole)
        count = self.crops if self.crop == "random" else 1
        picture = int(digest[:8], 16)
        boxes = [
            crop_box(seen, self.crop, generator(self.seed, "crop", step, picture), form)
            for step in range(count)
        ]
        flips = (False, True) if self.mirror else (False,)
        return [(box, flip) for box in boxes for flip in flips]

    def key(self, digest: str, vae: str) -> str:
        """The name of what this transform and this VAE make of the picture with this digest."""
        random = [self.crops, self.seed] if self.crop == "random" else None
        parts = [FORMAT, digest, vae, self.resolution, self.crop, random, self.mirror]
        buckets = [] if self.multiple is None else [self.multiple, self.enlarge]
        text = json.dumps([*parts, list(self.background), *buckets])
        return hashlib.sha256(text.encode()).hexdigest()


def encode_pictures(
    vae: "AutoencoderKL",
    fingerprint: str,
    pictures: Sequence[Path],
    transform: Transform,
    *,
    cache: Path | None = None,
    batch: int = 8,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Latents:
    """Encode each picture's variants with the VAE, or read them from the folder `cache`.

    `fingerprint` names the VAE's weights; `batch` is the number of variants per forward
    pass, which are of one picture; `device` is where the VAE is moved to (None: it stays);
    `progress(done, total)` counts pictures.
    The result is multiplied by the VAE's `scaling_factor` (after its `shift_factor`, if any).
    Raises UserError for an unreadable picture, an unwritable cache or a VAE that makes NaN;
    ValueError for no pictures or a batch below 1.
    """
    if not pictures or batch < 1:
        raise ValueError(
            f"batch must be at least 1, got {batch}" if pictures else "no picture given"
        )
    store = None if cache is None else Store(Path(cache))
    if device is not None:
        vae.to(torch.device(device))
    digests = [digest_of(picture) for picture in pictures]

    def key(digest: str) -> str:  # asked for afresh: a VAE that overflows changes its dtype
        return transform.key(digest, f"{fingerprint} {vae.dtype}")

    known: list[Encoded | None] = [store.read(key(one)) if store else None for one in digests]
    missing = [place for place, found in enumerate(known) if found is None]
    report = progress or (lambda done, total: None)
    done = len(pictures) - len(missing)
    report(done, len(pictures))
    todo = [(pictures[place], digests[place]) for place in missing]
    for place, encoded in zip(missing, _encode(vae, todo, transform, batch), strict=True):
        known[place] = encoded
        if store:
            store.write(key(digests[place]), encoded)
        done += 1
        report(done, len(pictures))
    complete = [found for found in known if found is not None]  # all are by now
    # Contiguous: the VAE answers in channels-last, a cached file does not, and memory order shows
    # in the last bits of a convolution.
    mean, std = ([encoded[part].contiguous() for encoded in complete] for part in (0, 1))
    sizes = torch.stack([sizes for *_, sizes in complete])  # V 6 -> N V 6
    return Latents(mean, std, sizes, [picture.name for picture in pictures])


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror}") from error


class Store:
    """A folder of encoded pictures, one safetensors file per key, each with its checksum."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder cannot be made."""
        self.folder = folder
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, key: str) -> Encoded | None:
        """What `write` wrote; None where it is missing or (logged) damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                mean, std, sizes = (file.get_tensor(name) for name in ("mean", "std", "sizes"))
                if (file.metadata() or {}).get("sha256") == _checksum((mean, std, sizes)):
                    return mean, std, sizes
            reason = "its checksum disagrees"
        except (SafetensorError, OSError) as error:
            reason = str(error)
        log.warning("cached latents %s are damaged and made again: %s", path, reason)
        return None

    def write(self, key: str, encoded: Encoded) -> None:
        """Staged beside its place, then renamed: readers and other processes see all or nothing.

        Raises UserError where the disk cannot be written.
        """
        mean, std, sizes = (tensor.contiguous() for tensor in encoded)
        tensors = {"mean": mean, "std": std, "sizes": sizes}
        content = save(tensors, {"sha256": _checksum((mean, std, sizes))})
        path = self._path(key)
        staged = path.with_suffix(f".{os.getpid()}.tmp")
        with self._explained():
            try:
                staged.write_bytes(content)  # not flushed: the checksum catches what a crash loses
                staged.replace(path)
            finally:
                staged.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"latent cache {self.folder} cannot be written ({error.strerror}): make room, "
                "choose another folder with data.cache=FOLDER, or data.cache=null to do without"
            ) from error


def _checksum(encoded: Encoded) -> str:
    sha = hashlib.sha256()
    for tensor in encoded:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _encode(
    vae: "AutoencoderKL", todo: Sequence[tuple[Path, str]], transform: Transform, batch: int
) -> Iterator[Encoded]:
    """Moments and sizes of each (picture, digest), in order.

    A batch never spans pictures: its size shows in the last bits, and which pictures are missing
    from the cache must not. Equal variants (where nothing is cut off, all crops are) are encoded
    once.
    """
    for path, digest in todo:
        pixels, order, sizes = _pixels(path, digest, transform)  # [D, 3, H, W]
        dtype = vae.dtype
        parts = [encode_pixels(vae, part) for part in pixels.split(batch)]
        if vae.dtype != dtype:  # it overflowed: a picture's variants are all of one arithmetic
            parts = [encode_pixels(vae, part) for part in pixels.split(batch)]
        mean, std = (torch.cat(several) for several in zip(*parts, strict=True))
        yield mean[order], std[order], sizes  # D C h w -> V C h w


def _pixels(
    path: Path, digest: str, transform: Transform
) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """The D distinct variants of a picture, [D, 3, H, W], for each of the V which one it is, and
    their sizes, [V, 6]."""
    # The short side of no size is longer than the resolution.
    picture, whole = load_with_size(path, transform.background, short_side=transform.resolution)
    size = transform.size_of(whole)
    if enlargement(whole, size) > 1 and not transform.enlarge:
        log.warning("%s is %d x %d pixels: enlarged to %d x %d", path, *whole, *size)
    variants = transform.variants(picture.size, whole, digest)
    distinct = list(dict.fromkeys(variants))
    pixels = torch.stack([resize_box(picture, box, size, flip) for box, flip in distinct])
    sizes = [sizes_of_crop(whole, picture.size, box, flip, size) for box, flip in variants]
    return pixels, [distinct.index(variant) for variant in variants], torch.tensor(sizes)
