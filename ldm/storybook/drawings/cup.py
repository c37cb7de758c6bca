"""The drawing of a cup, its rim towards the viewer: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import Anchors, Design, Paint
from ldm.storybook.pen import Pen, bend

TRAITS = {
    "shape": ("mug", "tapered", "bowl", "waist", "goblet", "jug"),
    "handle": ("round", "square", "ear", "two", "none"),
    "saucer": ("none", "plate", "foot"),
    "steam": ("none", "none", "steam"),
    "accent": ("band", "rim+handle", "base", "half", "saucer+band"),
}

SIZES = ("width", "height", "handle")


def _cup_side(d: Design, w: float, top: float, low: float) -> Side:
    """Right-hand outline of the cup from rim to foot."""
    h = low - top
    return {
        "mug": [(w, top), (w, low - 0.12), (w * 0.86, low)],
        "tapered": [(w * 1.1, top), (w * 0.66, low)],
        "bowl": [
            (w * 1.18, top),
            (w * 1.12, top + 0.4 * h),
            (w * 0.82, top + 0.8 * h),
            (w * 0.4, low),
        ],
        "waist": [
            (w * 1.06, top),
            (w * 0.72, top + 0.42 * h),
            (w * 0.94, top + 0.8 * h),
            (w * 0.8, low),
        ],
        "goblet": [
            (w, top),
            (w * 0.92, top + 0.4 * h),
            (w * 0.5, top + 0.66 * h),
            (w * 0.24, top + 0.78 * h),
            (w * 0.62, low),
        ],
        "jug": [
            (w * 0.76, top),
            (w * 0.8, top + 0.2 * h),
            (w * 1.1, top + 0.62 * h),
            (w * 0.8, low),
        ],
    }[d["shape"]]


Side = list[tuple[float, float]]  # right-hand outline from rim to foot


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A cup with its open rim towards the viewer."""
    w, top = d.size("width", 0.5, 0.64), d.size("height", -0.5, -0.72)
    low = 0.86 if d["saucer"] != "none" else 0.98
    side = _cup_side(d, w, top, low)
    rim, x = side[0][0], -0.1
    if d["saucer"] == "plate":
        pen.ellipse(x, 0.86, 0.9, 0.15, paint.on(d, "saucer"))
    elif d["saucer"] == "foot":
        pen.box(x - 0.42, 0.76, x + 0.42, 1.0, paint.on(d, "base"), 0.06)
    _cup_handle(pen, d, paint, x, side, top)
    if d["steam"] == "steam":
        for dx in (-0.2, 0.2):
            pen.stroke(
                [
                    (x + dx, top - 0.08),
                    (x + dx + 0.1, top - 0.18),
                    (x + dx - 0.04, top - 0.3),
                    (x + dx + 0.06, top - 0.42),
                ],
                0.07,
                (248, 248, 250),
            )
    outline = [(x + a, b) for a, b in side] + [(x - a, b) for a, b in reversed(side)]
    pen.shape(outline, paint.body, coat=True)
    _cup_accent(pen, d, paint, x, side, low - top)
    pen.ellipse(x, top, rim, 0.15, paint.second if d.accented("rim") else paint.shade)
    pen.ellipse(x, top + 0.02, rim * 0.78, 0.09, (104, 62, 40), line=False)
    return Anchors(
        head=(x, top - 0.02, 1.5 * w),
        eyes=(x, top + 0.42, 1.6 * w),
        neck=(x, top + 0.3, 2.0 * w),
        side=(x - w * 0.9, 0.2, 0.3),
        mark=(x, top + (0.4 if d["shape"] == "goblet" else 0.5) * (low - top) + 0.06, 0.95 * w),
    )


def _width_at(side: Side, y: float) -> float:
    """Half-width of the cup at height `y`, by linear interpolation."""
    for (x0, y0), (x1, y1) in zip(side, side[1:], strict=False):
        if y0 <= y <= y1:
            return x0 + (x1 - x0) * (y - y0) / (y1 - y0)
    return side[-1][0]


def _cup_accent(pen: Pen, d: Design, paint: Paint, x: float, side: Side, height: float) -> None:
    top = side[0][1]
    spans = {"band": (0.36, 0.54), "half": (0.66, 0.98), "base": (0.8, 0.98)}
    for part, (a, b) in spans.items():
        if d.accented(part):
            ys = [top + height * (a + (b - a) * t / 2) for t in range(3)]
            right = [(x + _width_at(side, y) - 0.015, y) for y in ys]
            pen.shape(
                right + [(2 * x - px, y) for px, y in reversed(right)], paint.second, line=False
            )


def _cup_handle(pen: Pen, d: Design, paint: Paint, x: float, side: Side, top: float) -> None:
    fill, r = paint.on(d, "handle"), d.size("handle", 0.24, 0.36)
    edge = x + _width_at(side, top + 0.3) - 0.04
    y = top + 0.5
    if d["handle"] in ("round", "two"):
        ring = [(0, -r), (r * 0.8, -r * 0.85), (r * 1.1, 0), (r * 0.8, r * 0.85), (0, r)]
        pen.stroke(bend([(edge + a, y + b) for a, b in ring]), 0.14, fill)
        if d["handle"] == "two":
            pen.stroke(bend([(2 * x - edge - a * 0.8, y + b) for a, b in ring]), 0.14, fill)
    elif d["handle"] == "square":
        pen.stroke(
            [(edge, y - r), (edge + 1.1 * r, y - r), (edge + 1.1 * r, y + r), (edge, y + r)],
            0.15,
            fill,
        )
    elif d["handle"] == "ear":
        pen.stroke(
            bend(
                [
                    (edge, y - r),
                    (edge + r * 1.2, y - r * 1.1),
                    (edge + r * 0.9, y),
                    (edge - 0.06, y + r * 1.3),
                ]
            ),
            0.14,
            fill,
        )
