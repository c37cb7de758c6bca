"""Every format and mode, upright and in RGB; what cannot be read is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.data.images import check_pictures, find_pictures, load_picture
from ldm.errors import UserError
from tests.data.pictures import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    assert_close,
    colour_at,
    detailed,
    two_halves,
)


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


def test_many_pictures_are_found_as_fast_as_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is compared with a few others, not with all."""
    for number in range(400):
        (tmp_path / f"{number:03d}.png").touch()
    compared, original = [0], Path.__eq__

    def equal(self: Path, other: object) -> bool:
        compared[0] += 1
        return original(self, other)

    monkeypatch.setattr(Path, "__eq__", equal)
    assert len(find_pictures(tmp_path)) == 400
    assert compared[0] < 10 * 400
