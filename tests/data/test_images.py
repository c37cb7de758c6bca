"""Any folder of pictures, every format and mode, upright, never squashed."""

import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ldm.data.images import (
    check_pictures,
    crop_box,
    find_pictures,
    fit,
    load_picture,
    to_picture,
    to_tensor,
)
from ldm.errors import UserError
from ldm.randomness import generator

PHOTOS = Path(__file__).parents[3] / "shared" / "photos"
RED, GREEN, BLUE, WHITE = (220, 30, 20), (10, 160, 40), (20, 40, 200), (255, 255, 255)


def two_halves(size=(96, 64), left=RED, right=BLUE) -> Image.Image:
    """Left half of one colour, right half of another."""
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def detailed(size=(400, 300)) -> Image.Image:
    """A picture whose JPEG is long enough to be cut anywhere."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=generator(0, "test picture"))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def colour_at(picture: Image.Image, x: float, y: float) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.array(picture.getpixel((int(x * picture.width), int(y * picture.height))))


def assert_close(colour, expected, tolerance=12):
    assert np.abs(np.array(colour, int) - np.array(expected, int)).max() <= tolerance, (
        f"{colour} is not {expected}"
    )


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


# --- decoding


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("p.png", {}, 0),
        ("p.bmp", {}, 0),
        ("p.tif", {}, 0),
        ("p.tiff", {"compression": "tiff_lzw"}, 0),
        ("p.webp", {"lossless": True}, 0),
        ("p.webp", {}, 12),
        ("p.jpg", {"quality": 95}, 12),
        ("p.JPEG", {"progressive": True}, 12),
        ("p.gif", {}, 3),
    ],
)
def test_formats(tmp_path, name, options, tolerance):
    two_halves().save(tmp_path / name, **options)
    picture = load_picture(tmp_path / name)
    assert picture.size == (96, 64)
    assert_close(colour_at(picture, 0.2, 0.5), RED, tolerance)
    assert_close(colour_at(picture, 0.8, 0.5), BLUE, tolerance)


@pytest.mark.parametrize("name", ["anim.gif", "anim.webp", "anim.png", "pages.tiff"])
def test_first_frame_of_several(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (GREEN, RED, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert_close(colour_at(load_picture(tmp_path / name), 0.5, 0.5), GREEN, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["o.jpg", "o.png", "o.webp", "o.tiff"])
def test_exif_orientation_is_obeyed(tmp_path, orientation, name):
    upright = Image.new("RGB", (96, 64), WHITE)
    upright.paste(RED, (0, 0, 48, 32))  # top left
    upright.paste(BLUE, (48, 0, 96, 32))  # top right
    upright.paste(GREEN, (0, 32, 48, 64))  # bottom left
    stored = {  # what a camera stores, so that turning it as the tag says gives the upright one
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / name, exif=exif, quality=95)
    picture = load_picture(tmp_path / name, short_side=64)
    assert picture.size == (96, 64)
    corners = [colour_at(picture, x, y) for y in (0.2, 0.8) for x in (0.2, 0.8)]
    for corner, expected in zip(corners, [RED, BLUE, GREEN, WHITE], strict=True):
        assert_close(corner, expected)


def test_damaged_exif_is_not_fatal(tmp_path, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.5
    content = exif.tobytes()
    fraction, text = b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02"  # tag and type
    assert content.count(fraction) == 1
    two_halves().save(tmp_path / "tag.png", exif=content.replace(fraction, text))
    assert load_picture(tmp_path / "tag.png").size == (64, 96)  # what can be read is obeyed
    two_halves().save(tmp_path / "header.png", exif=content[:8] + b"\5" + content[9:])
    assert load_picture(tmp_path / "header.png").size == (96, 64)
    assert "header.png is damaged" in caplog.text


def test_cmyk_with_and_without_profile(tmp_path):
    two_halves().convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    two_halves().convert("CMYK").save(tmp_path / "c.tiff")
    for name in ["c.jpg", "c.tiff"]:
        assert_close(colour_at(load_picture(tmp_path / name), 0.2, 0.5), RED)
        assert_close(colour_at(load_picture(tmp_path / name), 0.8, 0.5), BLUE)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "YCbCr", "RGBX", "P"])
def test_other_modes(tmp_path, mode):
    stored = two_halves().convert(mode)
    path = tmp_path / ("m.tiff" if mode in ("YCbCr", "RGBX") else "m.png")
    stored.save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode or mode == "RGBX"
    expected = np.array(stored.convert("RGB"), int)
    assert np.abs(np.array(load_picture(path), int) - expected).max() <= 3


def test_lab(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = ImageCms.profileToProfile(two_halves(), srgb, lab, outputMode="LAB")
    assert stored is not None
    stored.save(tmp_path / "lab.tiff")
    picture = load_picture(tmp_path / "lab.tiff")
    assert_close(colour_at(picture, 0.2, 0.5), RED, 15)
    assert_close(colour_at(picture, 0.8, 0.5), BLUE, 15)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_16_bit_grey_is_scaled_not_cut(tmp_path, name):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (8, 1))).save(tmp_path / name)
    with Image.open(tmp_path / name) as stored:
        assert stored.mode == "I;16"
    pixels = np.array(load_picture(tmp_path / name))
    assert pixels.shape == (8, 256, 3)
    assert np.abs(pixels[0, :, 1].astype(int) - np.arange(256)).max() <= 1


def test_big_endian_16_bit(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], dtype=">u2")
    picture = Image.frombytes("I;16B", (3, 1), values.tobytes())
    picture.save(tmp_path / "be.tiff")
    assert np.array(load_picture(tmp_path / "be.tiff"))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [0, 25700, 65535], [0, 100, 255]),  # 16-bit values in a wide container
        (np.int32, [0, 2**29, 2**30], [0, 64, 128]),
        (np.float32, [0.0, 0.4, 1.0], [0, 102, 255]),
        (np.float32, [0.0, 100.0, 255.0], [0, 100, 255]),
        (np.float32, [np.nan, -3.0, 1.0], [0, 0, 255]),
    ],
)
def test_32_bit_grey(tmp_path, dtype, values, expected):
    Image.fromarray(np.array([values], dtype=dtype)).save(tmp_path / "wide.tiff")
    assert np.array(load_picture(tmp_path / "wide.tiff"))[0, :, 0].tolist() == expected


def with_alpha(mode: str) -> Image.Image:
    """Left opaque red, middle fully transparent blue, right green at half."""
    picture = Image.new("RGBA", (90, 30), (*RED, 255))
    picture.paste((*BLUE, 0), (30, 0, 60, 30))
    picture.paste((*GREEN, 128), (60, 0, 90, 30))
    return picture.convert(mode)


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (250, 200, 0)])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_alpha_lies_over_the_chosen_background(tmp_path, name, background):
    with_alpha("RGBA").save(tmp_path / name, lossless=True)
    picture = load_picture(tmp_path / name, background)
    assert_close(colour_at(picture, 0.17, 0.5), RED, 1)
    assert_close(colour_at(picture, 0.5, 0.5), background, 1)
    mixed = (np.array(GREEN) + np.array(background)) / 2
    assert_close(colour_at(picture, 0.83, 0.5), mixed.round(), 2)


def test_background_is_white_by_default(tmp_path):
    with_alpha("LA").save(tmp_path / "a.png")
    assert_close(colour_at(load_picture(tmp_path / "a.png"), 0.5, 0.5), WHITE, 0)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_palette_with_transparency(tmp_path, name, transparency):
    if name == "p.gif" and isinstance(transparency, bytes):
        transparency = 1  # GIF knows one transparent entry only
    picture = Image.new("P", (60, 20), 0)
    picture.putpalette([*RED, *BLUE, *GREEN])
    picture.paste(1, (20, 0, 40, 20))
    picture.paste(2, (40, 0, 60, 20))
    picture.save(tmp_path / name, transparency=transparency)
    loaded = load_picture(tmp_path / name, background=(250, 200, 0))
    for x, expected in [(0.1, RED), (0.5, (250, 200, 0)), (0.9, GREEN)]:
        assert_close(colour_at(loaded, x, 0.5), expected, 0)


@pytest.mark.parametrize(("mode", "clear"), [("RGB", BLUE), ("L", 38), ("1", 0)])
def test_transparent_colour_of_a_png_without_alpha(tmp_path, mode, clear):
    stored = two_halves().convert(mode)
    stored.paste(clear, (48, 0, 96, 64))
    stored.paste(255 if mode != "RGB" else RED, (0, 0, 48, 64))
    stored.save(tmp_path / "t.png", transparency=clear)
    picture = load_picture(tmp_path / "t.png", background=(250, 200, 0))
    assert_close(colour_at(picture, 0.8, 0.5), (250, 200, 0), 0)
    assert_close(colour_at(picture, 0.2, 0.5), RED if mode == "RGB" else WHITE, 0)


def test_embedded_profile_is_obeyed(tmp_path):
    """Stored in a space without gamma, then shown: without the profile it would be far too dark."""
    profile = linear_profile()
    source = ImageCms.createProfile("sRGB")
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    stored = ImageCms.profileToProfile(grey, source, target, outputMode="RGB")
    assert stored is not None
    assert colour_at(stored, 0.5, 0.5)[0] < 70
    stored.save(tmp_path / "linear.png", icc_profile=profile)
    assert_close(colour_at(load_picture(tmp_path / "linear.png"), 0.5, 0.5), (128, 128, 128), 3)
    two_halves().save(tmp_path / "bad.png", icc_profile=b"no profile at all")
    assert_close(colour_at(load_picture(tmp_path / "bad.png"), 0.2, 0.5), RED, 0)


def linear_profile() -> bytes:
    """The sRGB profile with its tone curves replaced by the identity, and renamed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for n in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * n
        tag = bytes(profile[entry : entry + 4])
        at = int.from_bytes(profile[entry + 4 : entry + 8], "big")
        size = int.from_bytes(profile[entry + 8 : entry + 12], "big")
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            identity = b"curv" + bytes(8)  # a curve of no entries
            profile[at : at + size] = identity + bytes(size - len(identity))
            profile[entry + 8 : entry + 12] = len(identity).to_bytes(4, "big")
        if tag == b"desc":
            text = profile[at : at + size].replace(
                "sRGB".encode("utf-16-be"), "test".encode("utf-16-be")
            )
            profile[at : at + size] = text
    return bytes(profile)


# --- what cannot be read


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["t.jpg", "t.png", "t.webp", "t.tiff", "t.bmp", "t.gif"])
def test_truncated_pictures_are_named(tmp_path, name, fraction):
    path = tmp_path / name
    detailed().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        load_picture(path)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        load_picture(path, short_side=32)  # the economical path notices, too


@pytest.mark.parametrize("content", [b"", b"a letter to the editor\n", b"\x89PNG\r\n\x1a\n"])
def test_text_named_jpg_is_named(tmp_path, content):
    path = tmp_path / "letter.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"letter\.jpg cannot be read .* remove it"):
        load_picture(path)
    with pytest.raises(UserError, match="gone.png does not exist"):
        load_picture(tmp_path / "gone.png")


def test_check_pictures_names_all_that_are_bad(tmp_path):
    two_halves().save(tmp_path / "good.png")
    (tmp_path / "bad1.jpg").write_text("text")
    (tmp_path / "bad2.png").write_text("text")
    check_pictures([tmp_path / "good.png"])
    with pytest.raises(UserError, match=r"(?s)bad1\.jpg.*bad2\.png") as raised:
        check_pictures(find_pictures(tmp_path))
    assert "good.png" not in str(raised.value)


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
