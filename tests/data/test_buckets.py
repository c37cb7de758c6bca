"""Aspect-ratio buckets: which size a picture gets, and that crops, sizes and cache follow it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.buckets import bucket_for, bucket_sizes
from ldm.data.images import crop_box, load_picture
from ldm.data.latents import Latents, Transform, encode_pictures
from ldm.data.ledger import digest_of
from ldm.data.masks import with_masks
from tests.data.pictures import detailed
from tests.data.test_masks import CELL, Averaging, bright

RESOLUTION, MULTIPLE = 64, 8


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((512, 512), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((6000, 4000), (576, 384)),  # all of it, where 640 x 384 would cut off a tenth
        ((1920, 1080), (640, 384)),
        ((2000, 1000), (640, 320)),
        ((3000, 750), (1024, 256)),
        ((9000, 300), (1024, 256)),  # no longer than that
        ((300, 9000), (256, 1024)),
    ],
)
def test_sizes_of_stable_diffusion(picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert bucket_for(picture, 512, 64) == size


@pytest.mark.parametrize(("resolution", "multiple"), [(512, 64), (1024, 32), (64, 8), (40, 8)])
def test_every_form_fits_and_little_is_cut_off(resolution: int, multiple: int) -> None:
    least = []
    for degrees in range(10, 81):
        angle = np.radians(degrees)
        picture = int(9999 * np.cos(angle)), int(9999 * np.sin(angle))
        width, height = bucket_for(picture, resolution, multiple)
        assert width % multiple == height % multiple == 0 < width * height <= resolution**2
        assert max(width, height) <= 4 * min(width, height)
        assert bucket_for(picture[::-1], resolution, multiple) == (height, width)
        if max(picture) <= 4 * min(picture):
            wide, other = picture[0] / picture[1], width / height
            least.append(min(wide / other, other / wide))
    assert min(least) > (0.7 if resolution == 40 else 0.87 if resolution // multiple == 8 else 0.93)


@pytest.mark.parametrize("picture", [(100, 80), (99, 71), (513, 100), (64, 64), (70, 700), (8, 9)])
def test_no_small_picture_is_made_larger_unless_asked(picture: tuple[int, int]) -> None:
    width, height = bucket_for(picture, 512, 8)
    assert width <= picture[0] and height <= picture[1]
    # Nor much smaller than need be: one side is used up but for less than two multiples.
    assert width > picture[0] - 16 or height > picture[1] - 16 or max(picture) > 4 * min(picture)
    large = bucket_for(picture, 512, 8, enlarge=True)
    assert large[0] * large[1] > 0.95 * 512**2
    assert large == bucket_for((100 * picture[0], 100 * picture[1]), 512, 8)


@pytest.mark.parametrize(
    ("picture", "size"),
    [((5, 12), (8, 16)), ((3, 3), (8, 8)), ((1, 200), (8, 32)), ((7, 7), (8, 8))],
)
def test_what_is_smaller_than_any_size_is_made_larger_as_little_as_can_be(
    picture: tuple[int, int], size: tuple[int, int]
) -> None:
    assert bucket_for(picture, RESOLUTION, MULTIPLE) == size


def test_there_is_a_size() -> None:
    assert bucket_sizes(8, 8) == [(8, 8)]
    with pytest.raises(ValueError, match="multiples of 64"):
        bucket_sizes(32, 64)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (301, 77), (5, 400), (64, 64)])
@pytest.mark.parametrize("form", [(64, 64), (72, 56), (32, 128), (1, 1)])
def test_a_box_is_the_largest_of_its_form(size: tuple[int, int], form: tuple[int, int]) -> None:
    boxes = {crop_box(size, "random", torch.Generator().manual_seed(n), form) for n in range(60)}
    for left, top, right, bottom in {crop_box(size, "center", form=form), *boxes}:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        width, height = right - left, bottom - top
        exact = min(size[0] / form[0], size[1] / form[1])  # times the form is what fits in
        assert abs(width - exact * form[0]) <= 0.5 and abs(height - exact * form[1]) <= 0.5
        assert width == size[0] or height == size[1]
    room = {(box[0], box[1]) for box in boxes}
    whole = crop_box(size, "center", form=form) == (0, 0, *size)
    assert len(room) == 1 if whole else len(room) > 1


def encoded(paths: list[Path], cache: Path | None = None, **transform: Any) -> Latents:
    vae: Any = Averaging()
    return encode_pictures(
        vae, "f", paths, Transform(RESOLUTION, multiple=MULTIPLE, **transform), cache=cache
    )


def drawn(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    paths = [folder / f"{n}.png" for n in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        detailed(size).save(path)
    return paths


def test_each_picture_has_latents_of_its_own_shape(tmp_path: Path) -> None:
    """The whole picture, resized and averaged over each latent's pixels."""
    paths = drawn(tmp_path, (160, 90), (90, 160), (256, 256))
    latents = encoded(paths, mirror=True)
    grids = [tuple(mean.shape) for mean in latents.mean]
    sizes = [bucket_for(size, 64, 8) for size in ((160, 90), (90, 160), (256, 256))]
    assert sizes == [(80, 48), (48, 80), (64, 64)]
    assert grids == [(2, 1, height // CELL, width // CELL) for width, height in sizes]
    wide = load_picture(paths[0])  # 5:3 of 16:9: 150 of its 160 columns
    resized = wide.resize((80, 48), Image.Resampling.LANCZOS, box=(5, 0, 155, 90))
    pixels = np.asarray(resized, dtype=np.float64)
    cells = (pixels.mean(2) / 127.5 - 1).reshape(12, CELL, 20, CELL).mean((1, 3))
    assert np.abs(latents.mean[0][0, 0].numpy() - cells).max() < 1e-5
    torch.testing.assert_close(latents.mean[0][1], latents.mean[0][0].flip(-1))


def test_sizes_tell_of_bucket_and_crop(tmp_path: Path) -> None:
    paths = drawn(tmp_path, (320, 180), (180, 320))
    wide, tall = encoded(paths, mirror=True).sizes.tolist()
    # 300 of 320 columns become 80 of 85.3: cut off are 10, 2.7 of these, on either side.
    assert wide == [[180, 320, 0, 3, 48, 80]] * 2
    assert tall == [[320, 180, 3, 0, 80, 48]] * 2
    found = encoded(paths[:1], crop="random", crops=6, mirror=True).sizes[0]
    transform = Transform(RESOLUTION, "random", 6, True, multiple=MULTIPLE)
    boxes = transform.variants((320, 180), (320, 180), digest_of(paths[0]))
    lefts = [
        round((320 - right if flip else left) * 80 / 300) for (left, _, right, _), flip in boxes
    ]
    assert found[:, 3].tolist() == lefts and len(set(lefts)) > 2
    assert found[:, 4:].tolist() == [[48, 80]] * 12


def test_a_jpeg_that_is_decoded_at_less_has_the_bucket_of_the_whole(tmp_path: Path) -> None:
    path, exif = tmp_path / "sideways.jpg", Image.Exif()
    exif[0x0112] = 6
    detailed((1601, 901)).save(path, exif=exif)  # upright 901 x 1601
    latents = encoded([path])
    assert latents.mean[0].shape[-2:] == (80 // CELL, 48 // CELL)
    assert latents.sizes[0, 0].tolist() == [1601, 901, 3, 0, 80, 48]


def test_masks_follow_their_pictures(tmp_path: Path) -> None:
    """The picture is its own mask."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, size in zip(paths, ((331, 200), (90, 200)), strict=True):
        picture = bright(size, (size[0] // 5, size[1] // 4, size[0] * 3 // 5, size[1] * 2 // 3))
        picture.convert("RGB").save(path)
        picture.save(path.with_suffix(".mask.png"))
    options: dict[str, Any] = {"crop": "random", "crops": 2, "mirror": True}
    latents = encoded(paths, **options)
    masks = with_masks(latents, paths, Transform(RESOLUTION, multiple=MULTIPLE, **options)).mask
    assert masks is not None
    for mask, mean in zip(masks, latents.mean, strict=True):
        assert mask.shape == mean.shape and mask.shape[-1] != mask.shape[-2]
        assert (mask - (mean + 1) / 2).abs().max() < 0.16  # Lanczos beside means


def test_the_cache_tells_squares_buckets_and_larger_ones_apart(tmp_path: Path) -> None:
    paths, cache = drawn(tmp_path, (48, 40), (160, 90)), tmp_path / "cache"
    vae: Any = Averaging()
    shapes = []
    for _ in range(2):  # the second time all is read
        square = encode_pictures(vae, "f", paths, Transform(RESOLUTION), cache=cache)
        plain, large = encoded(paths, cache), encoded(paths, cache, enlarge=True)
        shapes += [[tuple(m.shape[-2:]) for m in each.mean] for each in (square, plain, large)]
        assert len(list(cache.glob("*.latents"))) == 3
    assert (
        shapes[:3]
        == shapes[3:]
        == [
            [(16, 16), (16, 16)],
            [(10, 12), (12, 20)],
            [(14, 18), (12, 20)],
        ]
    )


def test_only_what_was_not_asked_for_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = drawn(tmp_path, (48, 40))
    encoded(small)
    encoded(small, enlarge=True)
    assert not caplog.records
    tiny = drawn(tmp_path, (5, 12))
    assert encoded(tiny).mean[0].shape[-2:] == (4, 2)
    assert "0.png is 5 x 12 pixels: enlarged to 8 x 16" in caplog.text
