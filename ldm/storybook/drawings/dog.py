"""The drawing of a dog, standing and seen from the side: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import INK, Anchors, Design, Paint, eye
from ldm.storybook.pen import RGB, Pen, bend

TRAITS = {
    "ears": ("floppy", "pointed", "long", "button"),
    "muzzle": ("short", "long", "broad"),
    "tail": ("up", "curl", "plume", "stub"),
    "legs": ("short", "long", "stout"),
    "accent": ("muzzle+belly", "ears+tail", "socks+muzzle", "saddle+ears", "patch+socks+tail"),
}

SIZES = ("length", "head", "girth")


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A dog facing right with a large head."""
    length, girth = d.size("length", 0.5, 0.66), d.size("girth", 0.25, 0.35)
    belly = {"short": 0.72, "long": 0.5, "stout": 0.62}[d["legs"]]
    cx, cy = -0.22, belly - girth
    _dog_tail(pen, d, paint, cx - length + 0.1, cy)
    thick = 0.3 if d["legs"] == "stout" else 0.2
    for x in (cx - length + 0.3, cx + length - 0.12):
        pen.box(x - thick / 2, cy, x + thick / 2, 0.94, paint.shade, 0.08)
    pen.ellipse(cx, cy, length, girth, paint.body, coat=True)
    if d.accented("belly"):
        pen.ellipse(cx, cy + girth * 0.62, length * 0.66, girth * 0.36, paint.second, line=False)
    if d.accented("saddle"):
        pen.ellipse(
            cx - 0.05, cy - girth * 0.5, length * 0.5, girth * 0.48, paint.second, line=False
        )
    for x in (cx - length + 0.14, cx + length - 0.3):
        pen.box(x - thick / 2, cy + 0.08, x + thick / 2, 1.0, paint.body, 0.08)
        pen.box(x - thick / 2, cy, x + thick / 2, cy + 0.24, paint.body, 0.05, line=False)
        if d.accented("socks"):
            pen.box(x - thick / 2, 0.78, x + thick / 2, 1.0, paint.second, 0.08, line=False)
    r = d.size("head", 0.36, 0.46)
    hx, hy = 0.42, min(cy - 0.42, -0.38 - r * 0.1)
    pen.stroke([(0.1, cy - 0.08), (hx - 0.16, hy + 0.5 * r)], 0.3, paint.body)
    pen.ellipse(0.02, cy, 0.3, girth * 0.86, paint.body, line=False, coat=True)
    _dog_head(pen, d, paint, hx, hy, r)
    return Anchors(
        head=(hx, hy - r * 0.86, 1.7 * r),
        eyes=(hx + 0.1 * r, hy - 0.12 * r, 1.5 * r),
        neck=(hx - 0.16, hy + r * 0.98, 1.25 * r),
        side=(-0.55, cy - girth * 0.8, 0.3),
        mark=(cx - 0.1, cy, 2.0 * girth),
    )


def _dog_tail(pen: Pen, d: Design, paint: Paint, x: float, y: float) -> None:
    fill = paint.on(d, "tail")
    if d["tail"] == "up":
        pen.stroke(bend([(x, y), (x - 0.16, y - 0.3), (x - 0.14, y - 0.6)]), 0.13, fill)
    elif d["tail"] == "curl":
        pen.stroke(
            bend(
                [
                    (x, y),
                    (x - 0.16, y - 0.2),
                    (x - 0.12, y - 0.46),
                    (x + 0.08, y - 0.5),
                    (x + 0.08, y - 0.34),
                ]
            ),
            0.12,
            fill,
        )
    elif d["tail"] == "plume":
        pen.blob(
            [
                (x + 0.05, y),
                (x - 0.2, y - 0.1),
                (x - 0.3, y - 0.5),
                (x - 0.14, y - 0.66),
                (x, y - 0.35),
            ],
            fill,
        )
    else:
        pen.ellipse(x - 0.02, y - 0.1, 0.16, 0.14, fill)


def _dog_head(pen: Pen, d: Design, paint: Paint, x: float, y: float, r: float) -> None:
    ears = paint.on(d, "ears")
    if d["ears"] == "pointed":
        for dx in (-0.62, 0.34):
            pen.shape(
                [
                    (x + (dx - 0.3) * r, y - 0.5 * r),
                    (x + dx * r, y - 1.55 * r),
                    (x + (dx + 0.42) * r, y - 0.6 * r),
                ],
                ears,
            )
    pen.ellipse(x, y, r * 1.05, r, paint.body, coat=True)
    reach = {"short": 0.25, "long": 0.58, "broad": 0.36}[d["muzzle"]]
    deep = {"short": 0.4, "long": 0.36, "broad": 0.5}[d["muzzle"]]
    mx, my = x + (0.55 + reach * 0.4) * r, y + 0.42 * r
    pen.ellipse(mx, my, (0.4 + reach * 0.55) * r, deep * r, paint.on(d, "muzzle"))
    pen.ellipse(mx + (0.3 + reach * 0.5) * r, my - 0.26 * r, 0.23 * r, 0.2 * r, INK)
    pen.stroke(
        [
            (mx + 0.34 * r, my + 0.14 * r),
            (mx + 0.08 * r, my + 0.2 * r),
            (mx - 0.14 * r, my + 0.04 * r),
        ],
        0.05,
        INK,
        line=False,
    )
    if d.accented("patch"):
        pen.ellipse(x + 0.2 * r, y - 0.2 * r, 0.42 * r, 0.46 * r, paint.second, line=False)
    eye(pen, x + 0.24 * r, y - 0.2 * r, 0.25 * r)
    _dog_ear(pen, d, ears, x, y, r)


def _dog_ear(pen: Pen, d: Design, fill: RGB, x: float, y: float, r: float) -> None:
    if d["ears"] == "floppy":
        pen.blob(
            [
                (x - 0.35 * r, y - 0.8 * r),
                (x - 0.2 * r, y - 0.1 * r),
                (x - 0.5 * r, y + 0.5 * r),
                (x - 0.95 * r, y + 0.35 * r),
                (x - 0.9 * r, y - 0.4 * r),
            ],
            fill,
        )
    elif d["ears"] == "long":
        pen.blob(
            [
                (x - 0.3 * r, y - 0.7 * r),
                (x - 0.25 * r, y + 0.6 * r),
                (x - 0.5 * r, y + 1.45 * r),
                (x - 0.95 * r, y + 1.2 * r),
                (x - 0.9 * r, y - 0.2 * r),
            ],
            fill,
        )
    elif d["ears"] == "button":
        pen.blob(
            [
                (x - 0.75 * r, y - 0.75 * r),
                (x - 0.2 * r, y - 0.98 * r),
                (x - 0.25 * r, y - 0.2 * r),
                (x - 0.6 * r, y - 0.25 * r),
            ],
            fill,
        )
