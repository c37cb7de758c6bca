"""The drawing of a cat, sitting or lying down: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import INK, Anchors, Design, Paint
from ldm.storybook.pen import Pen, bend

TRAITS = {
    "pose": ("sit", "sit", "lie"),
    "ears": ("small", "tall", "folded"),
    "tail": ("hook", "wave", "fat"),
    "face": ("round", "wide", "fluffy"),
    "eyes": ("round", "almond", "closed"),
    "accent": ("muzzle+chest", "ears+tail", "mask+paws", "chest+paws+ears", "half"),
}

SIZES = ("head", "girth", "tail")


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A cat seen from the front, sitting upright or lying down."""
    if d["pose"] == "lie":
        return _cat_lying(pen, d, paint)
    g, r = d.size("girth", 0.44, 0.6), d.size("head", 0.4, 0.48)
    _cat_tail(pen, d, paint, g * 0.8, 0.84)
    pen.blob(
        [
            (0, -0.25),
            (0.3, 0),
            (g, 0.55),
            (g * 0.92, 0.95),
            (0, 1.0),
            (-g * 0.92, 0.95),
            (-g, 0.55),
            (-0.3, 0),
        ],
        paint.body,
        coat=True,
    )
    if d.accented("chest"):
        pen.blob(
            [(0, 0), (0.26, 0.25), (0.2, 0.62), (0, 0.74), (-0.2, 0.62), (-0.26, 0.25)],
            paint.second,
            line=False,
        )
    for x in (-0.22, 0.22):
        pen.ellipse(x, 0.92, 0.2, 0.12, paint.on(d, "paws"))
    _cat_head(pen, d, paint, 0, -0.36, r)
    return Anchors(
        head=(0, -0.36 - 0.8 * r, 1.7 * r),
        eyes=(0, -0.42, 1.9 * r),
        neck=(0, -0.36 + 0.96 * r, 1.5 * r),
        side=(-g * 0.8, 0.4, 0.3),
        mark=(0, 0.44, 0.62),
    )


def _cat_lying(pen: Pen, d: Design, paint: Paint) -> Anchors:
    g, r = d.size("girth", 0.4, 0.54), d.size("head", 0.4, 0.48)
    _cat_tail(pen, d, paint, -0.78, 0.7, -1)
    pen.ellipse(-0.12, 1.0 - g, 0.82, g, paint.body, coat=True)
    if d.accented("chest"):
        pen.ellipse(-0.12, 0.9, 0.55, 0.14, paint.second, line=False)
    for x in (0.28, 0.66):
        pen.ellipse(x, 0.92, 0.2, 0.12, paint.on(d, "paws"))
    y = 0.98 - 1.5 * g - 0.5 * r
    _cat_head(pen, d, paint, 0.42, y, r)
    return Anchors(
        head=(0.42, y - 0.8 * r, 1.7 * r),
        eyes=(0.42, y - 0.06, 1.9 * r),
        neck=(0.42, y + 0.98 * r, 1.5 * r),
        side=(-0.6, 0.5, 0.3),
        mark=(-0.42, 0.98 - g, 1.3 * g),
    )


def _cat_tail(pen: Pen, d: Design, paint: Paint, x: float, y: float, s: int = 1) -> None:
    fill, h = paint.on(d, "tail"), d.size("tail", 0.75, 1.2)
    if d["tail"] == "fat":
        path = [(-0.1, 0), (0.3, 0.08), (0.46, -0.5 * h), (0.3, -0.8 * h), (0.16, -0.4)]
        pen.blob([(x + s * dx, y + dy) for dx, dy in path], fill)
        return
    path = [(0, 0), (0.26, -0.05), (0.3, -0.35 * h), (0.14, -0.6 * h), (0.3, -0.9 * h)]
    if d["tail"] == "hook":
        path = [(0, 0), (0.3, -0.1), (0.36, -0.6 * h), (0.2, -0.85 * h), (0.06, -0.72 * h)]
    pen.stroke(bend([(x + s * dx, y + dy) for dx, dy in path]), 0.14, fill)


def _cat_head(pen: Pen, d: Design, paint: Paint, x: float, y: float, r: float) -> None:
    _cat_ears(pen, d, paint, x, y, r)
    wide = {"round": 1.05, "wide": 1.25, "fluffy": 1.15}[d["face"]]
    if d["face"] == "fluffy":
        for s in (-1, 1):
            pen.shape(
                [
                    (x + s * 0.7 * r, y - 0.1 * r),
                    (x + s * 1.42 * r, y + 0.2 * r),
                    (x + s * 1.1 * r, y + 0.36 * r),
                    (x + s * 1.2 * r, y + 0.66 * r),
                    (x + s * 0.5 * r, y + 0.8 * r),
                ],
                paint.body,
            )
    pen.ellipse(x, y, wide * r, 0.92 * r, paint.body, coat=True)
    _cat_markings(pen, d, paint, x, y, r)
    _cat_face(pen, d, x, y, r, wide)


def _cat_ears(pen: Pen, d: Design, paint: Paint, x: float, y: float, r: float) -> None:
    tip = {"small": 1.3, "tall": 1.62, "folded": 1.12}[d["ears"]]
    for s in (-1, 1):
        pen.shape(
            [
                (x + s * 1.0 * r, y - 0.1 * r),
                (x + s * 0.95 * r, y - tip * r),
                (x + s * 0.1 * r, y - 0.8 * r),
            ],
            paint.body,
        )
        pen.shape(
            [
                (x + s * 0.82 * r, y - 0.4 * r),
                (x + s * 0.82 * r, y - (tip - 0.32) * r),
                (x + s * 0.4 * r, y - 0.8 * r),
            ],
            paint.second if d.accented("ears") else paint.shade,
            line=False,
        )


def _cat_markings(pen: Pen, d: Design, paint: Paint, x: float, y: float, r: float) -> None:
    if d.accented("mask"):
        pen.blob(
            [
                (x, y - 0.7 * r),
                (x + 0.5 * r, y + 0.1 * r),
                (x + 0.45 * r, y + 0.7 * r),
                (x, y + 0.85 * r),
                (x - 0.45 * r, y + 0.7 * r),
                (x - 0.5 * r, y + 0.1 * r),
            ],
            paint.second,
            line=False,
        )
    if d.accented("half"):
        pen.blob(
            [
                (x, y - 0.88 * r),
                (x + 0.7 * r, y - 0.6 * r),
                (x + 0.95 * r, y),
                (x + 0.6 * r, y + 0.5 * r),
                (x + 0.05 * r, y),
            ],
            paint.second,
            line=False,
        )
    if d.accented("muzzle"):
        pen.ellipse(x, y + 0.48 * r, 0.48 * r, 0.36 * r, paint.second, line=False)


def _cat_face(pen: Pen, d: Design, x: float, y: float, r: float, wide: float) -> None:
    for s in (-1, 1):
        if d["eyes"] == "closed":
            pen.stroke(
                [
                    (x + s * 0.7 * r, y + 0.04 * r),
                    (x + s * 0.45 * r, y - 0.18 * r),
                    (x + s * 0.2 * r, y + 0.04 * r),
                ],
                0.09,
                pen.line,
                line=False,
            )
        else:
            tall = 1.15 if d["eyes"] == "round" else 0.75
            pen.ellipse(x + s * 0.46 * r, y - 0.1 * r, 0.27 * r, 0.27 * tall * r, (226, 240, 120))
            pen.ellipse(x + s * 0.46 * r, y - 0.1 * r, 0.12 * r, 0.25 * tall * r, INK, line=False)
        for k in (0.3, 0.62):
            pen.stroke(
                [
                    (x + s * 0.6 * r, y + (0.2 + 0.6 * k) * r * 0.7),
                    (x + s * (wide + 0.42) * r, y + (k - 0.15) * r),
                ],
                0.035,
                pen.line,
                line=False,
            )
    pen.shape(
        [(x - 0.15 * r, y + 0.24 * r), (x + 0.15 * r, y + 0.24 * r), (x, y + 0.42 * r)],
        (236, 110, 130),
    )
    pen.stroke(
        [(x - 0.26 * r, y + 0.52 * r), (x, y + 0.64 * r), (x + 0.26 * r, y + 0.52 * r)],
        0.05,
        pen.line,
        line=False,
    )
