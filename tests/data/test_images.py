"""Any folder of pictures; never squashed; huge ones cheaply; tensors and back."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import crop_box, find_pictures, fit, load_picture, to_picture, to_tensor
from ldm.errors import UserError
from ldm.randomness import generator
from tests.data.pictures import (
    GREEN,
    RED,
    assert_close,
    detailed,
    two_halves,
)

PHOTOS = Path(__file__).parents[3] / "shared" / "photos"


# --- finding


def test_finds_pictures_sorted_and_names_what_it_skips(tmp_path, caplog):
    for name in ["b.png", "a.JPG", "c.webp", "d.bmp", "e.tiff", "f.gif", "g.mask.png"]:
        two_halves().save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    for stray in ["notes.md", "z.txt", ".DS_Store", "._b.png", "IMG.heic"]:
        (tmp_path / stray).write_text("stray")
    (tmp_path / "heldout").mkdir()
    two_halves().save(tmp_path / "heldout" / "h.png")
    (tmp_path / "folder.png").mkdir()
    with caplog.at_level(logging.INFO):
        found = find_pictures(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.webp", "d.bmp", "e.tiff", "f.gif"]
    assert len(caplog.messages) == 1
    for stray in ["notes.md", "z.txt", ".DS_Store", "._b.png", "IMG.heic"]:
        assert stray in caplog.messages[0]
    for silent in ["a.txt", "g.mask.png", "heldout"]:
        assert silent not in caplog.messages[0]


def test_long_list_of_strays_stays_one_short_line(tmp_path, caplog):
    two_halves().save(tmp_path / "a.png")
    for n in range(50):
        (tmp_path / f"{n:02}.json").write_text("{}")
    with caplog.at_level(logging.INFO):
        find_pictures(str(tmp_path))
    assert len(caplog.messages) == 1 and "and 45 more" in caplog.messages[0]


def test_nothing_to_skip_says_nothing(tmp_path, caplog):
    two_halves().save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO):
        find_pictures(tmp_path)
    assert not caplog.messages


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture in .*empty"):
        find_pictures(tmp_path / "empty")
    (tmp_path / "heic").mkdir()
    (tmp_path / "heic" / "IMG_1.HEIC").write_text("phone")
    with pytest.raises(UserError, match="only IMG_1.HEIC.*JPEG"):
        find_pictures(tmp_path / "heic")
    two_halves().save(tmp_path / "one.png")
    with pytest.raises(UserError, match="one.png is a file"):
        find_pictures(tmp_path / "one.png")


def test_broken_link_is_skipped(tmp_path, caplog):
    two_halves().save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert [path.name for path in find_pictures(tmp_path)] == ["a.png"]
    assert "b.png" in caplog.text


# --- economy, resizing, cropping


def test_huge_jpeg_is_decoded_small(tmp_path):
    two_halves((4000, 3000)).save(tmp_path / "huge.jpg")
    assert load_picture(tmp_path / "huge.jpg", short_side=64).size == (500, 375)  # an eighth
    assert load_picture(tmp_path / "huge.jpg", short_side=700).size == (2000, 1500)
    assert load_picture(tmp_path / "huge.jpg", short_side=1600).size == (4000, 3000)
    assert load_picture(tmp_path / "huge.jpg").size == (4000, 3000)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (200, 200), (37, 50), (101, 64)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_never_squashed(size, crop):
    """A circle as wide as the short side, wherever the crop falls, keeps equal width and height."""
    tensor = fit(circles(size), 64, crop, generator=generator(0, "crop"))
    assert tensor.shape == (3, 64, 64) and tensor.dtype == torch.float32
    assert tensor.min() >= -1 and tensor.max() <= 1
    dark = (tensor.mean(0) < 0).float()  # the same pattern in both directions: dots on a lattice
    runs = [longest_run(dark), longest_run(dark.T)]
    assert abs(runs[0] - runs[1]) <= 2 and runs[0] > 4


def circles(size) -> Image.Image:
    """Black discs on a square lattice whose pitch is a quarter of the short side."""
    pitch = min(size) / 4
    y, x = np.mgrid[: size[1], : size[0]] / pitch % 1 - 0.5
    return Image.fromarray(np.where(x**2 + y**2 < 0.12, 0, 255).astype(np.uint8)).convert("RGB")


def longest_run(rows: torch.Tensor) -> int:
    return max(len(run) for row in rows for run in "".join(str(int(v)) for v in row).split("0"))


def test_centre_crop_takes_the_middle():
    picture = Image.new("RGB", (300, 100), RED)
    picture.paste(GREEN, (100, 0, 200, 100))
    middle = fit(picture, 50)
    assert_close(np.array(to_picture(middle)).reshape(-1, 3).min(0), GREEN, 30)
    assert (to_picture(middle).getpixel((25, 25))) == GREEN


def test_square_of_the_right_size_keeps_its_pixels():
    picture = detailed((64, 64))
    assert np.array_equal(np.array(to_picture(fit(picture, 64))), np.array(picture))
    wide = detailed((81, 64))  # odd room: no shift by half a pixel
    assert np.array_equal(np.array(to_picture(fit(wide, 64))), np.array(wide)[:, 8:72])


def test_mirror_flips_left_and_right():
    picture = two_halves((64, 64))
    plain, mirrored = fit(picture, 32), fit(picture, 32, mirror=True)
    assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)


@pytest.mark.parametrize("size", [(50, 20), (20, 50)])
def test_random_crop_is_seeded_and_reaches_both_ends(size):
    long = 0 if size[0] > size[1] else 1
    boxes = [crop_box(size, "random", generator(0, "crop", n)) for n in range(400)]
    assert boxes == [crop_box(size, "random", generator(0, "crop", n)) for n in range(400)]
    assert {box[2] - box[0] for box in boxes} == {box[3] - box[1] for box in boxes} == {20}
    assert {box[long] for box in boxes} == set(range(31))
    assert {box[1 - long] for box in boxes} == {0}


def test_random_crop_without_generator_and_unknown_crop_are_refused():
    with pytest.raises(ValueError, match="generator"):
        fit(two_halves(), 32, "random")
    with pytest.raises(ValueError, match="'middle'"):
        fit(two_halves(), 32, "middle")  # type: ignore[arg-type]


def test_very_long_picture_costs_no_memory():
    assert fit(Image.new("RGB", (60000, 3), RED), 512).shape == (3, 512, 512)


def test_tensor_and_back_is_exact():
    picture = detailed((17, 9))
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 9, 17) and tensor.dtype == torch.float32
    assert tensor[0, 0, 0] == pytest.approx(np.array(picture)[0, 0, 0] / 127.5 - 1, abs=1e-6)
    assert np.array_equal(np.array(to_picture(tensor)), np.array(picture))
    outside = to_picture(torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1))
    assert outside.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.skipif(not PHOTOS.exists(), reason="needs the photographs in ../shared/photos")
def test_real_photographs(tmp_path):
    for path in find_pictures(PHOTOS / "dog3"):
        small, full = (fit(load_picture(path, short_side=side), 64) for side in (64, None))
        assert (small - full).abs().mean() < 0.03  # of 2: economical decoding is not visible
    shutil.copy(path, tmp_path / "dog.jpg")
    content = (tmp_path / "dog.jpg").read_bytes()
    (tmp_path / "dog.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="dog.jpg"):
        load_picture(tmp_path / "dog.jpg", short_side=64)
