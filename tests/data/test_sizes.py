"""What SDXL is told of a picture's size: the file's, upright, and where the crop lies in it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.data.latents import Transform, encode_pictures
from ldm.data.sizes import sizes_of_crop, sizes_of_whole
from tests.data.pictures import detailed

SIDE = 16


class FakeVae:
    """Latents that are the squares themselves."""

    dtype, device = torch.float32, torch.device("cpu")

    class config:
        scaling_factor, shift_factor = 1.0, None

    def encode(self, squares: torch.Tensor) -> Any:
        class Posterior:
            mean, std = squares, torch.zeros_like(squares)

        return type("Output", (), {"latent_dist": Posterior})


def sizes_of(path: Path, cache: Path | None = None, **transform: Any) -> list[list[float]]:
    vae: Any = FakeVae()
    latents = encode_pictures(vae, "f", [path], Transform(SIDE, **transform), cache=cache)
    assert latents.sizes.dtype == torch.float32
    return latents.sizes[0].tolist()


def test_whole_pictures() -> None:
    assert sizes_of_whole(24, 32, 2).tolist() == [[24, 32, 0, 0, 24, 32]] * 2


def test_a_crop_is_told_in_pixels_of_the_resized_picture() -> None:
    # 100 x 40 at 20 pixels is 50 x 20; the crop began at 30 of 100: at 15 of 50.
    assert sizes_of_crop((100, 40), (100, 40), (30, 0, 70, 40), False, (20, 20)) == [
        *(40, 100),
        *(0, 15),
        *(20, 20),
    ]
    # Mirrored, what was 30 to its right (15 of 50) lies to its left.
    assert sizes_of_crop((100, 40), (100, 40), (30, 0, 70, 40), True, (20, 20))[2:4] == [0, 15]
    assert sizes_of_crop((100, 40), (100, 40), (60, 0, 100, 40), True, (20, 20))[2:4] == [0, 0]
    assert sizes_of_crop((40, 100), (40, 100), (0, 10, 40, 50), True, (20, 20))[2:4] == [5, 0]
    # A decoding of half the size has crops of half the size, of the same file.
    halved = sizes_of_crop((100, 40), (50, 20), (15, 0, 35, 20), False, (20, 20))
    assert halved == [40, 100, 0, 15, 20, 20]


@pytest.mark.parametrize("mirror", [False, True])
def test_variants_of_a_picture(tmp_path: Path, mirror: bool) -> None:
    path = tmp_path / "wide.png"
    detailed((64, 32)).save(path)
    assert sizes_of(path, mirror=mirror) == [[32, 64, 0, 8, 16, 16]] * (1 + mirror)
    found = sizes_of(path, crop="random", crops=3, mirror=mirror)
    transform = Transform(SIDE, crop="random", crops=3, mirror=mirror)
    from ldm.data.ledger import digest_of

    boxes = transform.variants((64, 32), (64, 32), digest_of(path))
    assert [size[3] for size in found] == [
        round((64 - box[2] if flip else box[0]) / 2) for box, flip in boxes
    ]
    assert len({size[3] for size in found}) > 1


def test_orientation_and_economical_decoding(tmp_path: Path) -> None:
    """A sideways JPEG, of which an eighth would be decoded: the upright file's own size counts."""
    path, exif = tmp_path / "sideways.jpg", Image.Exif()
    exif[0x0112] = 6
    detailed((640, 320)).save(path, exif=exif)
    assert sizes_of(path) == [[640, 320, 8, 0, 16, 16]]


def test_they_lie_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    detailed((64, 32)).save(path)
    options: dict[str, Any] = {"crop": "random", "crops": 3, "mirror": True}
    first = sizes_of(path, tmp_path / "cache", **options)
    (file,) = (tmp_path / "cache").glob("*.latents")
    written = file.stat().st_mtime_ns
    assert sizes_of(path, tmp_path / "cache", **options) == first == sizes_of(path, **options)
    assert file.stat().st_mtime_ns == written, "read, not made again"
