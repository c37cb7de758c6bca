"""Find, decode, orient and crop pictures; pictures to tensors and back."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from ldm.errors import UserError

log = logging.getLogger(__name__)

Colour = tuple[int, int, int]
Crop = Literal["center", "random"]
Box = tuple[int, int, int, int]
Size = tuple[int, int]  # width, height

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"])
FORMATS = "JPEG, PNG, WebP, BMP, TIFF or GIF"
TURNS = {  # EXIF orientation -> what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}  # width becomes height


def is_mask(path: Path) -> bool:
    """Whether this file is a mask (`*.mask.png`), which lies beside a picture and is none."""
    return path.name.lower().endswith(".mask.png")


def find_pictures(folder: Path | str) -> list[Path]:
    """The pictures directly in `folder`, sorted by name; at least one.

    A picture is a file with a known suffix, in either case, whose name starts with no dot. Masks,
    captions (`x.txt` beside `x.png`) and subfolders are passed over; any other file is skipped and
    named in one log line. Nothing is decoded here: see `check_pictures`.
    Raises UserError where the folder is missing, unreadable or holds no picture.
    """
    folder = Path(folder)
    try:
        files = sorted(path for path in folder.iterdir() if not path.is_dir())
    except FileNotFoundError:
        raise UserError(f"picture folder {folder} does not exist: check the path") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is a file: give the folder that holds the pictures") from None
    except OSError as error:
        raise UserError(f"picture folder {folder} cannot be read: {error.strerror}") from error
    pictures = [path for path in files if _looks_like_picture(path)]
    stems, known = {path.stem for path in pictures}, {*pictures}
    strays = [
        path
        for path in files
        if not (path in known or is_mask(path) or (path.suffix == ".txt" and path.stem in stems))
    ]
    if not pictures:
        found = f"it holds only {_listed(strays)}" if strays else "it holds no such file"
        raise UserError(
            f"no picture in {folder}: {found}. Put {FORMATS} files directly into it "
            "(subfolders are not searched)"
        )
    if strays:
        log.warning("skipped in %s, not a picture: %s", folder, _listed(strays))
    return pictures


def load_picture(
    path: Path | str, background: Colour = (255, 255, 255), short_side: int | None = None
) -> Image.Image:
    """Decode a picture (the first frame of several) to an upright RGB image, 8 bit per channel.

    EXIF orientation and an embedded colour profile are obeyed; transparency is laid over
    `background` (red, green, blue in 0..255); 16-bit values are scaled, not cut. With `short_side`
    (pixels) a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side stays
    at least twice that: a fifth of the memory, and once resized a mean difference of 0.2 to 1.6 of
    255 on photographs. Raises UserError naming a missing, damaged or unreadable file.
    """
    return load_with_size(path, background, short_side)[0]


def check_pictures(
    paths: Iterable[Path], look: Callable[[Path], object] = partial(load_picture, short_side=1)
) -> None:
    """Decode every picture once; raises one UserError naming all those that are unreadable.

    look: in the place of decoding; raises UserError where it finds that it could not be done.
    """
    problems = []
    for path in paths:
        try:
            look(path)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def load_with_size(
    path: Path | str, background: Colour = (255, 255, 255), short_side: int | None = None
) -> tuple[Image.Image, Size]:
    """`load_picture`, and beside it width and height of the whole file, upright."""
    with open_upright(path, short_side) as (image, whole):
        return _to_rgb(image, background), whole


def size_of(path: Path | str) -> Size:
    """Width and height of a picture, upright. Raises UserError as `load_picture` does."""
    with open_upright(path, short_side=1) as (_, whole):
        return whole


@contextmanager
def open_upright(
    path: Path | str, short_side: int | None = None
) -> Iterator[tuple[Image.Image, Size]]:
    """Decode a picture in its own mode, upright; beside it width and height of the whole file.

    The picture is smaller than that where `short_side` let it be decoded at less (see
    `load_picture`). Whatever Pillow raises in the body, too, becomes a UserError naming the file.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            stored = image.size
            if short_side is not None:
                image.draft(None, (2 * short_side, 2 * short_side))  # JPEG only, otherwise nothing
            image.load()
            turn = _turn(image, path)
            upright = image if turn is None else image.transpose(turn)
            yield upright, (stored[::-1] if turn in SIDEWAYS else stored)
    except FileNotFoundError:
        raise UserError(f"picture {path} does not exist") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, ...
        raise UserError(
            f"picture {path} cannot be read ({_reason(error)}): "
            f"replace it by an intact {FORMATS} file or remove it"
        ) from error


def transparency_of(image: Image.Image) -> Image.Image | None:
    """The alpha channel, 8-bit greyscale; None where there is none or nothing is transparent."""
    if _is_deep_grey(image) or not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema() != (255, 255) else None


def crop_box(
    size: Size, crop: Crop, generator: torch.Generator | None = None, form: Size = (1, 1)
) -> Box:
    """The largest box of a picture of `size`, both width and height: left, top, right, bottom.

    In pixels. Its sides are to each other as those of `form`, but for rounding; the default is a
    square. In the middle ("center"), or anywhere along the long side with equal probability ("random",
    which needs `generator`).
    """
    width, height = size
    if width * form[1] >= height * form[0]:
        width = max(1, round(height * form[0] / form[1]))
    else:
        height = max(1, round(width * form[1] / form[0]))
    room = (size[0] - width) + (size[1] - height)  # one of them is 0
    if crop == "random":
        if generator is None:
            raise ValueError("a random crop needs a generator")
        offset = int(torch.randint(room + 1, (), generator=generator))
    elif crop == "center":
        offset = room // 2
    else:
        raise ValueError(f"crop is 'center' or 'random', got {crop!r}")
    left, top = (offset, 0) if size[0] > width else (0, offset)
    return left, top, left + width, top + height


def resize_box(picture: Image.Image, box: Box, size: Size, mirror: bool) -> torch.Tensor:
    """Cut `box` out of an RGB picture, resize (Lanczos), mirror: float32 [3, H, W] in [-1, 1]."""
    resized = picture.resize(size, Image.Resampling.LANCZOS, box=box)
    return to_tensor(ImageOps.mirror(resized) if mirror else resized)


def fit(
    picture: Image.Image,
    resolution: int,
    crop: Crop = "center",
    mirror: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Scale the short side of an RGB picture to `resolution` and crop the long one; no squashing.

    Returns float32 [3, resolution, resolution] in [-1, 1], flipped left to right if `mirror`.
    Cropping comes first and resizing second, so that a very long picture costs no memory.
    """
    box = crop_box(picture.size, crop, generator)
    return resize_box(picture, box, (resolution, resolution), mirror)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """RGB image -> float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))  # HW3, uint8
    return rearrange(pixels, "h w c -> c h w").float().div(127.5).sub(1).contiguous()


def to_picture(tensor: torch.Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] (what lies outside is clipped), any dtype and device -> RGB image."""
    pixels = tensor.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255)
    return Image.fromarray(rearrange(pixels.to(torch.uint8), "c h w -> h w c").numpy())


def _looks_like_picture(path: Path) -> bool:
    known = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return known and path.is_file() and not is_mask(path)


def _listed(paths: Sequence[Path], limit: int = 5) -> str:
    names = ", ".join(path.name for path in paths[:limit])
    return names if len(paths) <= limit else f"{names} and {len(paths) - limit} more"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is not a picture"
    return f"{error}" or type(error).__name__


def _turn(image: Image.Image, path: Path) -> Image.Transpose | None:
    """What makes a loaded picture upright, as its EXIF (or XMP) orientation says; None: nothing.

    Unlike `ImageOps.exif_transpose` this writes no EXIF data back, which fails where any other
    entry is damaged. Without readable data the picture stays as it is: its pixels are intact.
    (Pillow turns a TIFF itself, and then shows no orientation.)
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # struct.error, SyntaxError, TypeError, ...
        log.warning("EXIF data of %s is damaged and ignored: %s", path, error)
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """Any mode -> RGB, transparency over `background`."""
    if _is_deep_grey(image):
        return _from_deep_grey(image)
    image = _to_srgb(image)
    if not image.has_transparency_data:  # one of 48 megapixels is 144 MB: no copy for nothing
        return image if image.mode == "RGB" else image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bit, or floating point -> RGB; Pillow itself would cut it at 255.

    Only I;16 states its range (0..65535). Of the others, integers are taken as 16-bit ones and
    floats as lying in 0..1, unless a value is above: then the next range that holds it.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    ranges = [1.0, 255.0, 65535.0] if image.mode == "F" else [65535.0, 2.0**31 - 1]
    white = next((white for white in ranges if values.max() <= white), values.max())
    grey = (values * (255 / white)).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _to_srgb(image: Image.Image) -> Image.Image:
    """Obey an embedded colour profile (a phone's Display P3, a printer's CMYK): the same mode, or
    RGB for CMYK. A damaged or unsuitable profile is ignored, as most viewers do."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    output = "RGB" if image.mode == "CMYK" else image.mode
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode=output)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.debug("colour profile ignored: %s", error)
        return image
    return converted if converted is not None else image
