"""The pictures of a subject: what training will see of each, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ldm.config import Config
from ldm.data.buckets import enlargement, share_left
from ldm.data.images import Box, Size, load_with_size
from ldm.data.latents import Transform
from ldm.data.ledger import digest_of
from ldm.data.masks import mask_beside
from ldm.data.quality import ALIKE, EQUAL, SIDE, Quality, background_likeness, distance, quality_of
from ldm.errors import UserError
from ldm.run.prepare import Prepared
from ldm.run.transform import subject_transform

ENOUGH = 3  # pictures of one subject; 3 to 5 in arXiv 2208.12242
CUT = 0.25  # share of a picture that may be cut off without a word
SHOWN = 320  # pixels, longest side on the contact sheet
DROPPED = ("unreadable", "equal", "blurred")  # what is left out of a clean folder


@dataclass
class Look:
    """One picture. `concerns`: kind -> what is wrong, empty where nothing is."""

    path: Path
    whole: Size = (0, 0)  # upright
    size: Size = (0, 0)  # that it is trained in
    shown: Image.Image | None = None  # the whole picture, small; None: it cannot be read
    boxes: list[Box] = field(default_factory=list)  # its crops, in pixels of `shown`
    quality: Quality | None = None
    concerns: dict[str, str] = field(default_factory=dict)

    @property
    def is_dropped(self) -> bool:
        return any(kind in self.concerns for kind in DROPPED)


def look_at(pictures: Sequence[Path], transform: Transform) -> list[Look]:
    """Decode and measure each picture as training crops it; an unreadable one is a concern too."""
    looks = [_look(path, transform) for path in pictures]
    _find_equal(looks)
    return looks


def advice_on(looks: Sequence[Look], is_square: bool) -> list[str]:
    """What is to be said of the pictures together. is_square: they are cut to squares."""
    usable = [look for look in looks if not look.is_dropped]
    advice = []
    if len(usable) < ENOUGH:
        advice.append(
            f"{len(usable)} usable: 3 to 5 are enough for one subject, in different places and "
            "poses; of fewer, place and pose are learnt with it"
        )
    cut = [look for look in usable if "cut" in look.concerns]
    if cut and is_square:
        advice.append(
            f"{len(cut)} of {len(usable)} lose more than a quarter to the square: "
            "data.aspect=buckets trains each in about its own form"
        )
    borders = [look.quality.border for look in usable if look.quality]
    if len(borders) >= ENOUGH and background_likeness(borders) > ALIKE:
        advice.append(
            "all have much the same background, which will be learnt as part of the subject: add "
            "pictures from other places, name the place in captions (x.txt), or use masks"
        )
    return advice


def picture_warnings(config: Config, ready: Prepared) -> list[str]:
    """All concerns and advice of a run's subjects, a line each. Draws and writes nothing."""
    transform, lines = subject_transform(config, ready), []
    for subject in ready.subjects:
        looks = look_at(subject.pictures, transform)
        lines += [f"{look.path.name}: {told}" for look in looks for told in look.concerns.values()]
        name = f"{subject.identifier}: " if len(ready.subjects) > 1 else ""
        lines += [name + line for line in advice_on(looks, config.data.aspect == "square")]
    return lines


def _look(path: Path, transform: Transform) -> Look:
    try:
        picture, whole = load_with_size(path, transform.background, short_side=SIDE)
        digest = digest_of(path)
    except UserError as error:
        return Look(path, concerns={"unreadable": f"{error}"})
    look = Look(path, whole, transform.size_of(whole))
    boxes = [box for box, _ in transform.variants(picture.size, whole, digest)]
    look.quality = quality_of(picture.crop(boxes[0]))
    factor = SHOWN / max(picture.size)
    look.shown = picture.resize(
        (max(1, round(picture.width * factor)), max(1, round(picture.height * factor))),
        Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST,
    )
    for left, top, right, bottom in dict.fromkeys(boxes):
        corners = (round(edge * factor) for edge in (left, top, right, bottom))
        look.boxes.append(tuple(corners))  # type: ignore[arg-type]
    look.concerns = _concerns(look)
    return look


def _concerns(look: Look) -> dict[str, str]:
    quality, found = look.quality, {}
    assert quality is not None
    if (factor := enlargement(look.whole, look.size)) > 1:
        found["small"] = "too small: {} x {} pixels, enlarged {:.1f} times to {} x {}".format(
            *look.whole, factor, *look.size
        )
    if (lost := 1 - share_left(look.whole, look.size)) > CUT:
        found["cut"] = f"{lost:.0%} of it is cut off: is the subject whole?"
    if quality.is_blurred:
        found["blurred"] = f"blurred (softness {quality.softness:.2f}; sharp ones are below .6)"
    if quality.is_overexposed:
        found["bright"] = f"overexposed: {quality.white:.0%} of its middle is white"
    if quality.is_underexposed:
        found["dark"] = "underexposed: even the bright parts of its middle are dark"
    return found


def _find_equal(looks: Sequence[Look]) -> None:
    """Of pictures that are nearly equal the best is kept, and the others are told so.

    That is the one with the fewest other concerns, with a caption or mask, then the sharpest.
    """
    kept: list[tuple[Look, Quality]] = []
    measured = [(look, look.quality) for look in looks if look.quality]
    for look, quality in sorted(measured, key=lambda pair: _worse(*pair)):
        for other, better in kept:
            apart, is_mirrored = distance(quality, better)
            if apart < EQUAL:
                mirrored = "the mirror image of " if is_mirrored else ""
                look.concerns["equal"] = f"nearly {mirrored}{other.path.name}, so one counts twice"
                break
        else:
            kept.append((look, quality))


def _worse(look: Look, quality: Quality) -> tuple[bool, int, bool, float]:
    told = look.path.with_suffix(".txt").is_file() or mask_beside(look.path) is not None
    return "blurred" in look.concerns, len(look.concerns), not told, quality.softness
