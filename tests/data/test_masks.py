"""Loss masks: where they come from, and that they follow their picture to the pixel."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import TURNS, find_pictures
from ldm.data.ledger import digest_of
from ldm.data.latents import Transform, encode_pictures
from ldm.data.masks import load_masks, mask_beside, with_masks
from ldm.errors import UserError

SIDE, CELL = 8, 4  # a latent grid of 8 x 8, each of 4 x 4 pixels
RESOLUTION, GRID = SIDE * CELL, (SIDE, SIDE)
STORED = {  # what a camera stores, so that turning it as the tag says gives the upright one
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
} | {key: turn for key, turn in TURNS.items() if key not in (6, 8)}


class Averaging:
    """A VAE whose latents are the picture's brightness, averaged over each latent's pixels."""

    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(scaling_factor=1.0, shift_factor=None)

    def encode(self, squares: torch.Tensor) -> Any:
        mean = torch.nn.functional.avg_pool2d(squares.mean(1, keepdim=True), CELL)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))


def bright(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Black, with a white rectangle."""
    picture = Image.new("L", size, 0)
    picture.paste(255, box)
    return picture


def masks_of(picture: Path, **options: Any) -> torch.Tensor:
    return load_masks([picture], Transform(RESOLUTION, **options), [GRID])[0][:, 0]


def tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", [None, *range(2, 9)])
@pytest.mark.parametrize("size", [(90, 64), (64, 103), (70, 70), (331, 200), (900, 601)])
def test_mask_follows_its_picture_through_turns_crops_and_mirrors(
    tmp_path, name, orientation, size
):
    """The picture is its own mask: the bright rectangle. (The largest JPEG is decoded at less.)"""
    width, height = size
    upright = bright(size, (width // 5, height // 4, width * 3 // 5, height * 2 // 3))
    stored = upright if orientation is None else upright.transpose(STORED[orientation])
    exif: dict[str, Any] = {} if orientation is None else {"exif": tag(orientation)}
    stored.convert("RGB").save(tmp_path / name, quality=95, **exif)
    upright.save(tmp_path / "a.mask.png")
    transform = Transform(RESOLUTION, crop="random", crops=3, mirror=True, seed=5)
    vae: Any = Averaging()
    picture = tmp_path / name
    latents = encode_pictures(vae, "f", [picture], transform)
    found = with_masks(latents, [picture], transform).mask
    assert found is not None and len(found) == 1
    masks = found[0]
    assert masks.shape == (6, 1, SIDE, SIDE) and masks.dtype == torch.float32
    brightness = (latents.mean[0] + 1) / 2
    assert (masks - brightness).abs().max() < 0.16  # Lanczos beside means; a cell off is 1
    assert (masks - brightness).abs().mean() < 0.02
    assert torch.equal(masks[1::2], masks[::2].flip(-1))
    if size != (70, 70):
        assert len(masks[::2].unique(dim=0)) > 1  # the crops differ


def test_each_cell_is_the_mean_over_its_pixels(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (64, 96)).astype(np.uint8)
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.mask.png")
    (mask,) = masks_of(tmp_path / "a.png")
    square = values[:, 16:80].astype(np.float64) / 255  # the middle
    expected = square.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert np.abs(mask.numpy() - expected).max() < 1e-6
    assert masks_of(tmp_path / "a.png", mirror=True)[1].equal(mask.flip(-1))


def test_a_cell_that_the_subject_only_touches_is_not_rounded_away(tmp_path):
    mask = bright((320, 320), (0, 0, 160, 160))
    mask.paste(255, (300, 300, 301, 301))
    mask.save(tmp_path / "a.mask.png")
    Image.new("RGB", (320, 320)).save(tmp_path / "a.png")
    assert masks_of(tmp_path / "a.png")[0, 7, 7] == pytest.approx(1 / 1600)


def test_a_mask_smaller_than_the_grid_is_enlarged(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    bright((2, 2), (1, 0, 2, 1)).save(tmp_path / "a.mask.png")
    expected = torch.zeros(8, 8)
    expected[:4, 4:] = 1
    assert masks_of(tmp_path / "a.png")[0].equal(expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16", "palette"])
def test_a_mask_in_any_mode(tmp_path, mode):
    mask = bright((32, 32), (0, 0, 16, 32))
    if mode == "I;16":
        mask = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    elif mode == "palette":
        mask = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8)).convert("P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "a.mask.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    expected = torch.zeros(8, 8)
    expected[:, :4] = 1
    assert masks_of(tmp_path / "a.png")[0].equal(expected)


def test_transparent_parts_of_a_mask_are_black(tmp_path):
    mask = Image.new("L", (32, 32), 255)
    mask.putalpha(bright((32, 32), (0, 0, 16, 32)))
    mask.save(tmp_path / "a.mask.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert masks_of(tmp_path / "a.png")[0].mean() == 0.5


def test_a_mask_with_an_orientation_of_its_own_is_turned(tmp_path):
    upright = bright((60, 40), (0, 0, 30, 20))
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    upright.save(tmp_path / "a.mask.png")
    expected = masks_of(tmp_path / "a.png")
    upright.transpose(STORED[6]).save(tmp_path / "a.mask.png", exif=tag(6))
    assert masks_of(tmp_path / "a.png").equal(expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_transparency_is_a_mask(tmp_path, caplog, mode, orientation):
    upright = Image.new("RGB", (48, 32), (200, 30, 30))
    upright.putalpha(bright((48, 32), (8, 0, 24, 32)))
    stored = upright if orientation == 1 else upright.transpose(STORED[orientation])
    picture = tmp_path / "a.png"
    stored.convert(mode).save(picture, exif=tag(orientation))
    expected = torch.zeros(8, 8)
    expected[:, :4] = 1
    assert masks_of(picture)[0].equal(expected)
    assert masks_of(picture, mirror=True)[1].equal(expected.flip(-1))
    assert not caplog.messages


def test_partly_transparent_is_partly_subject(tmp_path):
    picture = Image.new("RGBA", (32, 32), (9, 9, 9, 51))
    picture.save(tmp_path / "a.png")
    assert masks_of(tmp_path / "a.png")[0].allclose(torch.tensor(0.2))


def test_deep_greyscale_has_no_transparency_here_as_it_has_none_in_decoding(tmp_path):
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "a.png", transparency=0)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "I;16" and opened.has_transparency_data
    assert masks_of(tmp_path / "a.png")[0].equal(torch.ones(8, 8))


def test_a_mask_beside_goes_before_transparency(tmp_path):
    Image.new("RGBA", (32, 32), (9, 9, 9, 51)).save(tmp_path / "a.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "a.mask.png")
    assert masks_of(tmp_path / "a.png")[0].equal(torch.ones(8, 8))


def test_pictures_without_a_mask_count_everywhere_and_are_named_once(tmp_path, caplog):
    for name, mode in [("a.png", "RGB"), ("b.png", "RGBA"), ("c.png", "RGB"), ("d.png", "I;16")]:
        Image.new(mode, (32, 32), (9, 9, 9, 255)[: len(mode)] if "A" in mode else None).save(
            tmp_path / name
        )
    with Image.open(tmp_path / "b.png") as opaque:
        assert opaque.mode == "RGBA"
    bright((32, 32), (0, 0, 16, 16)).save(tmp_path / "c.mask.png")
    masks = load_masks(find_pictures(tmp_path), Transform(RESOLUTION, mirror=True), [GRID] * 4)
    assert [mask.shape for mask in masks] == [(2, 1, 8, 8)] * 4
    assert [float(mask.mean()) for mask in masks] == [1.0, 1.0, 0.25, 1.0]
    assert len(caplog.messages) == 1 and "a.png, b.png, d.png" in caplog.text


def test_which_file_is_the_mask(tmp_path):
    for name in ["x.y.mask.png", "x.mask.png.bak", "X.mask.png", "z.MASK.PNG"]:
        (tmp_path / name).touch()
    assert mask_beside(tmp_path / "x.y.jpg") == tmp_path / "x.y.mask.png"
    assert mask_beside(tmp_path / "x.jpg") is None
    assert mask_beside(tmp_path / "z.png") == tmp_path / "z.MASK.PNG"


def test_crops_depend_on_the_pictures_content_as_when_it_is_encoded(tmp_path):
    picture = tmp_path / "a.png"
    ramp = np.arange(300).repeat(32).reshape(300, 32).T * 255 / 299
    Image.fromarray(ramp.round().astype(np.uint8)).save(tmp_path / "a.mask.png")
    transform, size = Transform(RESOLUTION, "random", crops=4, seed=3), (300, 32)
    middles: list[list[float]] = []
    for colour in ("black", "navy"):
        Image.new("RGB", (300, 32), colour).save(picture)
        boxes = [box for box, _ in transform.variants(size, size, digest_of(picture))]
        found = load_masks([picture], transform, [GRID])[0].flatten(1).mean(1)
        middles.append([(left + right - 1) / 2 / 299 for left, _, right, _ in boxes])
        assert found.tolist() == pytest.approx(middles[-1], abs=0.01)
    assert middles[0] != middles[1]


def test_nothing_is_read_later(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    bright((32, 32), (0, 0, 16, 32)).save(tmp_path / "a.mask.png")
    vae: Any = Averaging()
    latents = encode_pictures(vae, "f", [picture], Transform(RESOLUTION))
    masked = with_masks(latents, [picture], Transform(RESOLUTION))
    picture.unlink()
    (tmp_path / "a.mask.png").unlink()
    assert masked.mask is not None and masked.mask[0].mean() == 0.5
    assert masked.mean is latents.mean and latents.mask is None


# --- bad input


def test_a_mask_of_another_size_is_refused_with_both(tmp_path):
    turned = Image.new("RGB", (64, 48))
    turned.save(tmp_path / "a.jpg", exif=tag(6))  # upright 48 x 64
    Image.new("L", (64, 48), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=r"a\.mask\.png is 64 x 48 .* a\.jpg 48 x 64"):
        masks_of(tmp_path / "a.jpg")


def test_a_mask_of_a_large_jpeg_has_the_size_of_the_file(tmp_path):
    Image.new("RGB", (1000, 600)).save(tmp_path / "a.jpg")  # decoded at 125 x 75
    Image.new("L", (125, 75), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=r"125 x 75 .* 1000 x 600"):
        masks_of(tmp_path / "a.jpg")


@pytest.mark.parametrize("value", [0, 1])  # 1: what labels look like
def test_a_black_mask_is_refused(tmp_path, value):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    Image.new("L", (32, 32), value).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=r"a\.mask\.png is black .* paint the subject white"):
        masks_of(tmp_path / "a.png")


def test_a_mask_that_is_black_in_one_crop_only_is_refused(tmp_path):
    Image.new("RGB", (320, 32)).save(tmp_path / "a.png")
    bright((320, 32), (0, 0, 16, 32)).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=r"a\.mask\.png is black in the crop 144\.\.176 x 0\.\.32"):
        masks_of(tmp_path / "a.png")
    with pytest.raises(UserError, match="is black in the crop"):
        masks_of(tmp_path / "a.png", crop="random", crops=8)


def test_a_wholly_transparent_picture_is_refused(tmp_path):
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is black"):
        masks_of(tmp_path / "a.png")


def test_unreadable_files_are_named(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    (tmp_path / "a.mask.png").write_text("text")
    with pytest.raises(UserError, match=r"a\.mask\.png cannot be read"):
        masks_of(picture)
    picture.write_text("text")
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        masks_of(picture)


def test_arguments_that_do_not_fit(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    with pytest.raises(ValueError, match="no picture"):
        load_masks([], Transform(RESOLUTION), [])
    vae: Any = Averaging()
    latents = encode_pictures(vae, "f", [picture], Transform(RESOLUTION))
    with pytest.raises(ValueError, match="masks"):
        with_masks(latents, [picture], Transform(RESOLUTION, mirror=True))
