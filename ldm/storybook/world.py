"""Scenes: what a picture shows, how it is drawn at random, painted and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

import numpy as np
from PIL import Image

from ldm.storybook.accessories import ACCESSORY_DRAWINGS, draw_mark
from ldm.storybook.drawings import DRAWINGS
from ldm.storybook.parts import CREAM, GREY, INK, PAPER, Design, Paint
from ldm.storybook.pen import RGB, SUPERSAMPLING, Pen, clamp, luminance, mix
from ldm.storybook.scenes import DARK_SETTINGS, paint_setting
from ldm.storybook.scenes import SETTINGS as _SETTINGS

COLOURS: dict[str, RGB] = {
    "red": (216, 38, 42),
    "orange": (255, 140, 20),
    "yellow": (255, 224, 50),
    "green": (62, 174, 62),
    "blue": (40, 96, 226),
    "purple": (132, 58, 192),
    "pink": (255, 156, 202),
    "brown": (122, 72, 36),
    "black": (44, 44, 52),
    "white": (250, 250, 248),
}
NOUNS = tuple(DRAWINGS)
SETTINGS = tuple(_SETTINGS)
PATTERNS = ("plain", "striped", "spotted")
ACCESSORIES = ("none", *ACCESSORY_DRAWINGS)
SECOND_TONES = ("lighter", "darker", "cream", "grey")
_LARGE_PARTS = frozenset(
    ("roof", "head", "arms", "half", "mask", "ears", "panel", "stripe", "fins", "ends", "door")
    + ("chest", "skirt", "corners")
)
COLOUR_JITTER = 8  # largest change per channel from picture to picture
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows; `render` depends on nothing else.

    x, y: the object's centre, 0 to 1 of the picture. scale: its box as a share
    of the picture. tilt: degrees. seed: fixes the details of setting, colour
    and accessory. The last four override the colours and add a mark.
    """

    noun: str
    colour: str
    setting: str
    pattern: str
    accessory: str
    design: Design
    x: float
    y: float
    scale: float
    tilt: float
    mirror: bool
    seed: int
    body_rgb: RGB | None = None
    second_rgb: RGB | None = None
    mark: str | None = None
    mark_rgb: RGB | None = None


def held_out(noun: str, colour: str, setting: str) -> bool:
    """Whether the triple belongs to the tenth kept out of training; always the same answer."""
    digest = blake2b(f"{noun}|{colour}|{setting}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < _HELD_OUT_SHARE * 2**64


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def random_design(noun: str, rng: np.random.Generator) -> Design:
    """A design of class `noun` with every choice drawn uniformly."""
    traits, sizes = DRAWINGS[noun].TRAITS, DRAWINGS[noun].SIZES
    chosen = {name: _pick(rng, options) for name, options in traits.items()}
    # A second tone on a large part is a shade of the colour, so that the named colour dominates.
    large = not _LARGE_PARTS.isdisjoint(chosen["accent"].split("+"))
    chosen["second"] = _pick(rng, SECOND_TONES[:2] if large else SECOND_TONES)
    return Design(noun, chosen, dict(zip(sizes, rng.random(len(sizes)).tolist(), strict=True)))


def random_pose(noun: str, accessory: str, rng: np.random.Generator) -> dict:
    """Position, scale, tilt and mirror as keyword arguments of `Scene`.

    The accessory decides how much room is left around the object.
    """
    u = rng.random(5).tolist()
    roomy = accessory in ("wearing a top hat", "wearing a crown", "holding a balloon")
    scale = 0.54 + 0.12 * u[0] if roomy else 0.64 + 0.18 * u[0]
    x = 0.5 + (u[1] - 0.5) * (0.9 - scale) * 0.8
    if noun == "fish":
        scale = min(1.14 * scale, 0.86)
        y = 0.54 + 0.14 * (u[2] - 0.5)
    else:
        y = 0.89 + 0.07 * u[2] - scale / 2
    return {"x": x, "y": y, "scale": scale, "tilt": 24.0 * (u[3] - 0.5), "mirror": u[4] < 0.5}


def _accessory(rng: np.random.Generator) -> str:
    return "none" if rng.random() < 0.45 else _pick(rng, ACCESSORIES[1:])


def _pattern(rng: np.random.Generator) -> str:
    return "plain" if rng.random() < 0.7 else _pick(rng, PATTERNS[1:])


def random_scene(
    rng: np.random.Generator,
    noun: str | None = None,
    colour: str | None = None,
    setting: str | None = None,
    accessory: str | None = None,
    pattern: str | None = None,
    design: Design | None = None,
    held_out: bool | None = False,
) -> Scene:
    """Draw a scene; what is given is kept, the rest is random.

    held_out: False never draws a held-out (noun, colour, setting), True only
    those, None any. Raises ValueError where what is given allows none.
    """
    noun = design.noun if design is not None else noun
    for _ in range(2000):
        triple = (
            noun or _pick(rng, NOUNS),
            colour or _pick(rng, tuple(COLOURS)),
            setting or _pick(rng, SETTINGS),
        )
        if held_out is None or _is_held_out(*triple) == held_out:
            break
    else:
        given = f"noun={noun}, colour={colour}, setting={setting}"
        raise ValueError(f"no scene with {given} has held_out={held_out}; leave one of them free")
    accessory = accessory or _accessory(rng)
    return Scene(
        *triple,
        pattern=pattern or _pattern(rng),
        accessory=accessory,
        design=design or random_design(triple[0], rng),
        **random_pose(triple[0], accessory, rng),
        seed=int(rng.integers(2**31)),
    )


_is_held_out = held_out  # `random_scene` has an argument of that name


def second_tone(body: RGB, kind: str) -> RGB:
    """The second tone that goes with a body colour: "lighter", "darker", "cream" or "grey"."""
    if kind == "cream":
        return CREAM if luminance(body) < 215 else mix(body, (150, 120, 80), 0.45)
    if kind == "grey":
        return GREY if abs(luminance(body) - 168) > 40 else mix(GREY, INK, 0.45)
    if kind == "lighter" and luminance(body) < 215:
        return mix(body, (255, 255, 255), 0.55)
    return mix(body, (0, 0, 0), 0.42) if luminance(body) > 60 else mix(body, (255, 255, 255), 0.27)


def _pattern_tone(body: RGB) -> RGB:
    """A clearly darker shade for light colours, a lighter one for dark ones."""
    if luminance(body) > 105:
        return mix(body, INK, 0.38)
    return mix(body, (255, 255, 255), 0.45)


def _paint(scene: Scene, rng: Random) -> Paint:
    if scene.body_rgb is not None:
        body = scene.body_rgb
    else:
        jitter = COLOUR_JITTER
        r, g, b = (c + rng.randint(-jitter, jitter) for c in COLOURS[scene.colour])
        body = clamp(r, g, b)
    return Paint(body, scene.second_rgb or second_tone(body, scene.design["second"]))


def render(scene: Scene) -> Image.Image:
    """Paint the scene: 64 x 64 RGB, antialiased, the same picture every time."""
    rng = Random(scene.seed + 1)
    paint = _paint(scene, rng)
    dark = scene.setting in DARK_SETTINGS
    limit = 125 if scene.body_rgb is None and dark else 60  # a subject looks the same everywhere
    line = PAPER if luminance(paint.body) < limit else INK
    image = paint_setting(scene.setting, scene.seed)
    pen = Pen(image, (scene.x, scene.y, scene.scale, scene.tilt, scene.mirror), line)
    pen.set_pattern(scene.pattern, _pattern_tone(paint.body), rng.random())
    anchors = DRAWINGS[scene.noun].draw(pen, scene.design, paint)
    if scene.mark is not None and scene.mark_rgb is not None:
        draw_mark(pen, anchors, scene.mark, scene.mark_rgb)
    if scene.accessory != "none":
        ACCESSORY_DRAWINGS[scene.accessory](pen, anchors, rng, paint.body, dark)
    return image.reduce(SUPERSAMPLING)
