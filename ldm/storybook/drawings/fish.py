"""The drawing of a fish, swimming: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import Anchors, Design, Paint, eye
from ldm.storybook.pen import Pen, mix

TRAITS = {
    "body": ("oval", "round", "long", "diamond"),
    "tail": ("fork", "fan", "moon", "veil"),
    "dorsal": ("sail", "spikes", "low", "crest"),
    "lips": ("smile", "pout"),
    "accent": ("belly", "fins+tail", "band", "head", "tail+belly"),
}

SIZES = ("depth", "tail", "eye")


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A fish swimming to the right."""
    rx = {"oval": 0.66, "round": 0.58, "long": 0.74, "diamond": 0.66}[d["body"]]
    depth = {"oval": 1.05, "round": 1.25, "long": 0.8, "diamond": 1.3}[d["body"]]
    ry = d.size("depth", 0.4, 0.5) * depth
    cx = 0.22
    _fish_tail(pen, d, paint, cx - rx + 0.12)
    _fish_dorsal(pen, d, paint, cx, ry)
    if d["body"] == "diamond":
        pen.blob(
            [(cx + rx, 0.05), (cx + 0.1, ry), (cx - rx, 0), (cx + 0.1, -ry)], paint.body, coat=True
        )
    else:
        pen.ellipse(cx, 0, rx, ry, paint.body, coat=True)
    _fish_markings(pen, d, paint, cx, rx, ry)
    pen.blob(
        [(cx - 0.02, 0.1), (cx - 0.3, 0.06), (cx - 0.34, 0.32), (cx - 0.06, 0.28)],
        paint.second if d.accented("fins") else paint.shade,
    )
    r = d.size("eye", 0.11, 0.16)
    eye(pen, cx + rx * 0.56, -ry * 0.26, r)
    mx, my = cx + rx * (0.84 if d["body"] != "diamond" else 0.8), ry * 0.3
    if d["lips"] == "smile":
        pen.stroke([(mx, my), (mx - 0.12, my + 0.06), (mx - 0.24, my)], 0.06, pen.line, line=False)
    else:
        pen.ellipse(cx + rx * 0.98, 0.1, 0.1, 0.1, mix(paint.second, (236, 110, 120), 0.5))
    return Anchors(
        head=(cx + 0.22, -ry * 0.9, 0.7),
        eyes=(cx + rx * 0.5, -ry * 0.26, 0.74),
        neck=(cx + rx * 0.16, 0.0, 1.9 * ry),
        side=(cx - 0.3, ry * 0.7, 0.3),
        mark=(cx - 0.22, -0.08, 1.05 * ry),
    )


def _fish_markings(pen: Pen, d: Design, paint: Paint, cx: float, rx: float, ry: float) -> None:
    if d.accented("belly"):
        pen.ellipse(cx + 0.02, ry * 0.6, rx * 0.62, ry * 0.32, paint.second, line=False)
    if d.accented("band"):
        for x in (cx - 0.3, cx + 0.06):
            pen.ellipse(x, 0, 0.1, ry * 0.8, paint.second, line=False)
    if d.accented("head"):
        pen.blob(
            [
                (cx + rx * 0.94, 0.04),
                (cx + rx * 0.66, ry * 0.6),
                (cx + rx * 0.3, ry * 0.8),
                (cx + rx * 0.36, 0),
                (cx + rx * 0.3, -ry * 0.8),
                (cx + rx * 0.66, -ry * 0.6),
            ],
            paint.second,
            line=False,
        )


def _fish_tail(pen: Pen, d: Design, paint: Paint, x: float) -> None:
    fill, h, left = paint.on(d, "tail"), d.size("tail", 0.38, 0.6), -0.98
    if d["tail"] == "fork":
        pen.shape([(x, 0), (left, -h), (left + 0.2, 0), (left, h)], fill)
    elif d["tail"] == "fan":
        pen.blob(
            [
                (x, 0),
                (x - 0.2, -h * 0.8),
                (left, -h * 0.7),
                (left - 0.02, 0),
                (left, h * 0.7),
                (x - 0.2, h * 0.8),
            ],
            fill,
        )
    elif d["tail"] == "moon":
        pen.blob(
            [
                (x, 0),
                (x - 0.16, -h),
                (left + 0.04, -h * 1.2),
                (left + 0.24, 0),
                (left + 0.04, h * 1.2),
                (x - 0.16, h),
            ],
            fill,
        )
    else:
        pen.shape(
            [
                (x, 0),
                (left, -h),
                (left + 0.14, -h * 0.4),
                (left, 0),
                (left + 0.14, h * 0.4),
                (left, h),
            ],
            fill,
        )


def _fish_dorsal(pen: Pen, d: Design, paint: Paint, cx: float, ry: float) -> None:
    fill = paint.on(d, "fins")
    if d["dorsal"] == "sail":
        pen.shape([(cx - 0.4, -ry * 0.6), (cx - 0.26, -ry - 0.34), (cx + 0.3, -ry * 0.7)], fill)
    elif d["dorsal"] == "spikes":
        pen.shape(
            [
                (cx - 0.44, -ry * 0.6),
                (cx - 0.34, -ry - 0.2),
                (cx - 0.14, -ry - 0.04),
                (cx - 0.04, -ry - 0.28),
                (cx + 0.1, -ry - 0.02),
                (cx + 0.24, -ry - 0.22),
                (cx + 0.3, -ry * 0.7),
            ],
            fill,
        )
    elif d["dorsal"] == "low":
        pen.blob(
            [
                (cx - 0.5, -ry * 0.5),
                (cx - 0.4, -ry - 0.08),
                (cx + 0.2, -ry - 0.1),
                (cx + 0.3, -ry * 0.6),
            ],
            fill,
        )
    else:
        pen.blob(
            [
                (cx - 0.2, -ry * 0.8),
                (cx - 0.24, -ry - 0.22),
                (cx + 0.04, -ry - 0.36),
                (cx + 0.14, -ry * 0.8),
            ],
            fill,
        )
    pen.shape([(cx - 0.1, ry * 0.8), (cx - 0.36, ry + 0.22), (cx + 0.14, ry * 0.85)], fill)
