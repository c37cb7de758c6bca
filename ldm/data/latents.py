"""Pictures to latents, once: the posterior's mean and deviation, in memory and on disk.

Beside them lie the numbers that SDXL is told of each picture's size.

The VAE is frozen, so nothing but the posterior *sample* changes from step to step, and that is
drawn in training from what lies here: mean + std * noise.

The disk cache (`ldm.data.shelf`) is asked by what the content depends on: the picture's bytes, the
transform and the VAE. An edited picture or another model never meets a stale one, and a damaged one
(its checksum disagrees) is encoded again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ldm.data.buckets import bucket_for, enlargement
from ldm.data.encoding import encode_pixels
from ldm.data.images import Box, Colour, Crop, Size, crop_box, load_with_size, resize_box
from ldm.data.ledger import Ledger
from ldm.data.shelf import Encoded, Moments, Shelf
from ldm.data.sizes import SIZES, sizes_of_crop
from ldm.errors import UserError
from ldm.randomness import generator

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when the meaning of a cached file changes

Progress = Callable[[int, int], None]


@dataclass
class Latents:
    """Posterior moments of N pictures in V variants each, scaled as the UNet expects them.

    Height and width, [h, w], are each picture's own.
    """

    mean: Sequence[torch.Tensor]  # N of [V, C, h, w], float32, CPU; of a cache: `Moments`
    std: Sequence[torch.Tensor]  # N of [V, C, h, w], float32, CPU, >= 0
    sizes: torch.Tensor  # [N, V, 6], float32, CPU: see `ldm.data.sizes`
    names: list[str]  # N file names
    mask: list[torch.Tensor] | None = None  # N of [V, 1, h, w], float32, CPU, 0..1: the subject

    def __post_init__(self) -> None:
        means, stds = (_shapes(each) for each in (self.mean, self.std))
        sizes = tuple(self.sizes.shape)
        fit = means == stds and sizes == (len(self.names), self.variants, SIZES)
        if not fit or [shape[0] for shape in means] != [self.variants] * len(self.names):
            raise ValueError(
                f"{len(self.names)} names, mean {means}, std {stds}, sizes {sizes} do not belong "
                "together"
            )
        masks = _shapes(self.mask or ())
        if self.mask is not None and masks != [(v, 1, *grid) for v, _, *grid in means]:
            raise ValueError(f"masks {masks} do not fit latents {means}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def variants(self) -> int:
        return self.sizes.shape[1]


def _shapes(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    if isinstance(tensors, Moments):  # without a view of each
        return tensors.shapes
    return [tuple(one.shape) for one in tensors]


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

    def key(self, vae: str) -> str:
        """The name of what this transform and this VAE make of pictures."""
        random = [self.crops, self.seed] if self.crop == "random" else None
        parts = [FORMAT, vae, self.resolution, self.crop, random, self.mirror]
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
    ledger: Ledger | None = None,
    batch: int = 8,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Latents:
    """Encode each picture's variants with the VAE, or find them in the folder `cache`.

    With a cache they stay in its files, mapped, and memory does not grow with the pictures; without
    one they are all in memory. `ledger` tells what pictures hold (None: that of the cache; it is
    saved). `fingerprint` names the VAE's weights; `batch` is the number of variants per forward
    pass, which are of one picture; `device` is where the VAE is moved to (None: it stays);
    `progress(done, total)` counts pictures of different content.
    The result is multiplied by the VAE's `scaling_factor` (after its `shift_factor`, if any).
    Raises UserError for an unreadable picture, an unwritable cache or a VAE that makes NaN;
    ValueError for no pictures or a batch below 1.
    """
    if not pictures or batch < 1:
        raise ValueError(
            f"batch must be at least 1, got {batch}" if pictures else "no picture given"
        )
    if device is not None:
        vae.to(torch.device(device))
    cache = None if cache is None else Path(cache)
    ledger = Ledger(cache) if ledger is None else ledger
    digests = [ledger.digest(picture) for picture in pictures]
    ledger.save()
    files = dict(zip(digests, pictures, strict=True))  # equal ones are encoded once
    report = progress or (lambda done, total: None)
    while True:  # a second time where the VAE overflows, and is of another dtype then
        key = transform.key(f"{fingerprint} {vae.dtype}")
        held = _Held([*files]) if cache is None else Shelf(cache, key, [*files])
        if _encode_missing(vae, files, transform, batch, held, report):
            mean, std, sizes = held.moments(digests)
            return Latents(mean, std, sizes, [picture.name for picture in pictures])


def _encode_missing(
    vae: "AutoencoderKL",
    files: Mapping[str, Path],
    transform: Transform,
    batch: int,
    held: "_Held | Shelf",
    report: Progress,
) -> bool:
    """Encode what is not held. False where the VAE's arithmetic changed on the way."""
    missing, dtype = held.missing(), vae.dtype
    done = len(files) - len(missing)
    report(done, len(files))
    for digest in missing:
        encoded = _encode(vae, files[digest], digest, transform, batch)
        if vae.dtype != dtype:
            return False
        held.put(digest, encoded)
        done += 1
        report(done, len(files))
    return True


class _Held:
    """The counterpart of a `Shelf` where there is no disk: pictures in memory."""

    def __init__(self, digests: Sequence[str]) -> None:
        self.digests = digests
        self._encoded: dict[str, Encoded] = {}

    def missing(self) -> list[str]:
        return [digest for digest in self.digests if digest not in self._encoded]

    def put(self, digest: str, encoded: Encoded) -> None:
        # Contiguous: the VAE answers in channels-last, a cached file does not, and memory order
        # shows in the last bits of a convolution.
        mean, std, sizes = (part.contiguous() for part in encoded)
        self._encoded[digest] = (mean, std, sizes)

    def moments(
        self, digests: Sequence[str]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        mean, std, sizes = zip(*(self._encoded[digest] for digest in digests), strict=True)
        return [*mean], [*std], torch.stack(sizes)  # V 6 -> N V 6


def _encode(
    vae: "AutoencoderKL", path: Path, digest: str, transform: Transform, batch: int
) -> Encoded:
    """Moments and sizes of a picture's variants.

    A batch never spans pictures: its size shows in the last bits, and which pictures are missing
    from the cache must not. Equal variants (where nothing is cut off, all crops are) are encoded
    once.
    """
    pixels, order, sizes = _pixels(path, digest, transform)  # [D, 3, H, W]
    parts = [encode_pixels(vae, part) for part in pixels.split(batch)]
    mean, std = (torch.cat(several) for several in zip(*parts, strict=True))
    return mean[order], std[order], sizes  # D C h w -> V C h w


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
