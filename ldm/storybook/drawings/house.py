"""The drawing of a house, seen from the front: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import CREAM, Anchors, Design, Paint
from ldm.storybook.pen import Pen, mix

TRAITS = {
    "roof": ("gable", "steep", "hip", "dome", "castle", "hat"),
    "windows": ("square", "round", "arch"),
    "door": ("box", "arch", "round"),
    "place": ("middle", "left", "right"),
    "chimney": ("none", "left", "right"),
    "accent": ("roof", "door+frames", "corners", "roof+door", "base+frames"),
}

SIZES = ("width", "wall", "eaves")

PANE = (255, 244, 176)


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A house seen from the front."""
    w, wall = d.size("width", 0.62, 0.84), d.size("wall", -0.16, 0.16)
    top = -0.98 if d["roof"] == "steep" else wall - d.size("eaves", 0.56, 0.74)
    if d["chimney"] != "none":
        x = 0.42 * w * (1 if d["chimney"] == "right" else -1)
        pen.box(x - 0.12, top - 0.05, x + 0.12, wall, paint.shade)
    pen.box(-w, wall - 0.04, w, 1.0, paint.body, coat=True)
    if d.accented("corners"):
        for x in (-w, w - 0.14):
            pen.box(x, wall, x + 0.14, 1.0, paint.second, line=False)
    if d.accented("base"):
        pen.box(-w, 0.82, w, 1.0, paint.second, line=False)
    _house_roof(pen, d, paint, w, wall, top)
    door = {"middle": 0.0, "left": -0.5, "right": 0.5}[d["place"]] * w
    _house_windows(pen, d, paint, w, wall, door)
    _house_door(pen, d, paint, door)
    return Anchors(
        head=(0, top + (0.1 if d["roof"] in ("gable", "steep", "hat") else 0.0), 0.85),
        eyes=(0, wall + 0.26, 1.5 * w),
        neck=(0, wall + 0.02, 2.05 * w),
        side=(-w * 0.9, 0.5, 0.3),
        mark=(
            0,
            (wall + top) / 2 + (0.1 if d["roof"] not in ("castle", "hip") else 0.02),
            min(0.5, 0.8 * (wall - top)),
        ),
    )


def _house_roof(pen: Pen, d: Design, paint: Paint, w: float, wall: float, top: float) -> None:
    fill, e = paint.on(d, "roof"), w + d.size("eaves", 0.08, 0.2)
    if d["roof"] in ("gable", "steep"):
        pen.shape([(-e, wall), (0, top), (e, wall)], fill)
    elif d["roof"] == "hip":
        pen.shape([(-e, wall), (-e * 0.55, top), (e * 0.55, top), (e, wall)], fill)
    elif d["roof"] == "dome":
        pen.shape(
            [
                (-e, wall),
                (-e * 0.9, wall + (top - wall) * 0.5),
                (-e * 0.6, wall + (top - wall) * 0.85),
                (0, top),
                (e * 0.6, wall + (top - wall) * 0.85),
                (e * 0.9, wall + (top - wall) * 0.5),
                (e, wall),
            ],
            fill,
        )
    elif d["roof"] == "castle":
        n, h, points = 7, 0.2, []
        for i in range(n):
            x0, x1 = -e + 2 * e * i / n, -e + 2 * e * (i + 1) / n
            y = top if i % 2 == 0 else top + h
            points += [(x0, y), (x1, y)]
        pen.shape([*points, (e, wall), (-e, wall)], fill)
    else:
        pen.shape(
            [
                (-e, wall),
                (-w * 0.5, wall + (top - wall) * 0.45),
                (0, top - 0.06),
                (w * 0.5, wall + (top - wall) * 0.45),
                (e, wall),
            ],
            fill,
        )


def _house_windows(pen: Pen, d: Design, paint: Paint, w: float, wall: float, door: float) -> None:
    y, r = wall + 0.34, 0.16
    frame = paint.second if d.accented("frames") else CREAM
    for x in (-0.55 * w, 0.55 * w) if door == 0 else ((-0.5 if door > 0 else 0.5) * w,):
        wide = r if door == 0 else 1.35 * r
        if d["windows"] == "round":
            pen.ellipse(x, y, wide + 0.05, wide + 0.05, frame)
            pen.ellipse(x, y, wide - 0.03, wide - 0.03, PANE, line=False)
        else:
            corner = 0.14 if d["windows"] == "arch" else 0.0
            pen.box(x - wide - 0.03, y - r - 0.06, x + wide + 0.03, y + r + 0.06, frame, corner)
            pen.box(x - wide + 0.04, y - r + 0.01, x + wide - 0.04, y + r, PANE, line=False)
        pen.stroke([(x, y - r), (x, y + r)], 0.05, frame, line=False)


def _house_door(pen: Pen, d: Design, paint: Paint, x: float) -> None:
    fill = paint.second if d.accented("door") else mix(paint.shade, (96, 60, 40), 0.6)
    if d["door"] == "box":
        pen.box(x - 0.19, 0.5, x + 0.19, 1.0, fill)
    elif d["door"] == "arch":
        pen.shape(
            [
                (x - 0.2, 1.0),
                (x - 0.2, 0.6),
                (x - 0.14, 0.48),
                (x, 0.42),
                (x + 0.14, 0.48),
                (x + 0.2, 0.6),
                (x + 0.2, 1.0),
            ],
            fill,
        )
    else:
        pen.ellipse(x, 0.74, 0.24, 0.25, fill)
    pen.ellipse(x + 0.1, 0.76, 0.04, 0.04, (255, 214, 90), line=False)
