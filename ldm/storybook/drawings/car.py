"""The drawing of a car, seen from the side: its traits, sizes and shapes."""

from __future__ import annotations

from math import cos, radians, sin

from ldm.storybook.parts import CREAM, GREY, PAPER, Anchors, Design, Paint
from ldm.storybook.pen import Pen

TRAITS = {
    "body": ("beetle", "sedan", "van", "pickup", "racer", "bus"),
    "wheels": ("hub", "spokes", "white"),
    "roof": ("none", "rack", "fin"),
    "lamp": ("round", "square"),
    "accent": ("skirt", "roof", "door", "ends", "belt"),
}

SIZES = ("length", "wheel", "height")

GLASS = (190, 228, 244)

_CABINS = {  # roof line, window outlines
    "beetle": (
        [(-0.72, 0.1), (-0.6, -0.3), (-0.3, -0.56), (0.1, -0.6), (0.42, -0.4), (0.62, 0.1)],
        [(-0.5, -0.06), (-0.02, -0.06), (0.08, 0.46)],
    ),
    "sedan": (
        [(-0.7, 0.1), (-0.46, -0.5), (0.24, -0.5), (0.58, 0.1)],
        [(-0.46, -0.06), (-0.02, 0.06), (0.06, 0.42)],
    ),
    "van": (
        [(-0.96, 0.1), (-0.94, -0.64), (0.46, -0.64), (0.76, 0.1)],
        [(-0.8, -0.42), (-0.32, 0.06), (0.16, 0.54)],
    ),
    "pickup": (
        [(-0.14, 0.1), (-0.12, -0.54), (0.4, -0.54), (0.62, 0.1)],
        [(-0.0, 0.46), (0, 0), (0, 0)],
    ),
    "racer": (
        [(-0.5, 0.1), (-0.36, -0.34), (0.1, -0.34), (0.5, 0.1)],
        [(-0.26, 0.22), (0, 0), (0, 0)],
    ),
    "bus": (
        [(-0.96, 0.1), (-0.96, -0.72), (0.9, -0.72), (0.96, 0.1)],
        [(-0.82, -0.42), (-0.26, 0.14), (0.3, 0.78)],
    ),
}


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A chubby car driving to the right."""
    half, k = d.size("length", 0.9, 1.0), d.size("height", 0.9, 1.15)
    roof, windows = _CABINS[d["body"]]
    roof = [(x * half, y * k if y < 0 else y) for x, y in roof]
    peak = min(y for _, y in roof)
    middle = (roof[len(roof) // 2 - 1][0] + roof[len(roof) // 2][0]) / 2
    _car_roof(pen, d, paint, middle, peak)
    pen.shape(roof, paint.on(d, "roof"), coat=True)
    _car_body(pen, d, paint, half)
    if d["body"] in ("van", "bus"):
        pen.box(roof[0][0] + 0.06, -0.1, roof[-1][0] - 0.06, 0.14, paint.body, line=False)
    _car_accent(pen, d, paint, half)
    for left, right in ((a, b) for a, b in windows if a != b):
        pen.box(left * half, peak + 0.13, right * half, min(-0.04, peak + 0.44), GLASS, 0.07)
    lamp = (255, 240, 140)
    if d["lamp"] == "round":
        pen.ellipse(half * 0.9, 0.2, 0.11, 0.11, lamp)
    else:
        pen.box(half * 0.82, 0.12, half * 0.98, 0.3, lamp)
    r = d.size("wheel", 0.25, 0.34)
    for x in (-0.54 * half, 0.54 * half):
        _wheel(pen, d, paint, x, 0.96 - r, r)
    return Anchors(
        head=(middle, peak, 0.8),
        eyes=(middle + 0.05, peak + 0.3, 0.95),
        neck=(0, 0.0, 1.8 * half),
        side=(-half * 0.9, 0.1, 0.3),
        mark=(0, 0.25, 0.52),
    )


def _car_body(pen: Pen, d: Design, paint: Paint, half: float) -> None:
    nose = -0.02 if d["body"] != "racer" else 0.12
    pen.blob(
        [
            (-half, 0.05),
            (-half * 0.5, -0.04),
            (half * 0.5, -0.04),
            (half * 0.97, nose + 0.1),
            (half, 0.5),
            (half * 0.5, 0.62),
            (-half * 0.5, 0.62),
            (-half, 0.5),
        ],
        paint.body,
        coat=True,
    )


def _car_accent(pen: Pen, d: Design, paint: Paint, half: float) -> None:
    if d.accented("skirt"):
        pen.box(-half * 0.96, 0.4, half * 0.96, 0.58, paint.second, 0.06, line=False)
    elif d.accented("door"):
        pen.box(-0.26, -0.02, 0.24, 0.56, paint.second, 0.05)
    elif d.accented("ends"):
        pen.box(-half * 0.99, 0.08, -half * 0.68, 0.52, paint.second, 0.1, line=False)
        pen.box(half * 0.68, 0.1, half * 0.99, 0.52, paint.second, 0.1, line=False)
    elif d.accented("belt"):
        pen.box(-half * 0.96, 0.14, half * 0.96, 0.3, paint.second, line=False)


def _car_roof(pen: Pen, d: Design, paint: Paint, x: float, y: float) -> None:
    if d["roof"] == "rack":
        pen.box(x - 0.3, y - 0.18, x + 0.26, y, (150, 96, 56), 0.05)
    elif d["roof"] == "fin":
        pen.shape([(-0.98, -0.34), (-0.72, -0.34), (-0.5, 0.1), (-0.9, 0.1)], paint.second)


def _wheel(pen: Pen, d: Design, paint: Paint, x: float, y: float, r: float) -> None:
    pen.ellipse(x, y, r, r, (58, 56, 66))
    if d["wheels"] == "hub":
        pen.ellipse(x, y, r * 0.52, r * 0.52, GREY, line=False)
    elif d["wheels"] == "spokes":
        for a in (0, 60, 120):
            c, s = cos(radians(a)) * r * 0.7, sin(radians(a)) * r * 0.7
            pen.stroke([(x - c, y - s), (x + c, y + s)], 0.07, PAPER, line=False)
    else:
        pen.ellipse(x, y, r * 0.66, r * 0.66, CREAM, line=False)
        pen.ellipse(x, y, r * 0.36, r * 0.36, paint.body, line=False)
