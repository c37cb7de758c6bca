"""The drawing of a robot, seen from the front: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import GREY, INK, PAPER, Anchors, Design, Paint
from ldm.storybook.pen import Pen, mix

TRAITS = {
    "head": ("box", "dome", "wide", "round", "keystone"),
    "antenna": ("ball", "two", "zigzag", "dish", "ears"),
    "eyes": ("round", "visor", "one", "square"),
    "mouth": ("grille", "line", "none"),
    "body": ("box", "barrel", "funnel", "egg", "skirt"),
    "arms": ("claw", "ball", "raised", "tube"),
    "base": ("legs", "wheels", "track", "spring"),
    "accent": ("panel", "head", "arms+base", "panel+base", "stripe"),
}

SIZES = ("head", "body", "limb")


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A robot with a big head, facing the viewer."""
    hw, bw = d.size("head", 0.38, 0.52), d.size("body", 0.4, 0.54)
    _robot_base(pen, d, paint, bw)
    _robot_arms(pen, d, paint, bw)
    _robot_antenna(pen, d, paint, hw)
    pen.box(-0.14, -0.34, 0.14, 0.0, GREY)
    _robot_body(pen, d, paint, bw)
    _robot_head(pen, d, paint, hw)
    return Anchors(
        head=(0, -0.82, 1.7 * hw),
        eyes=(0, -0.56, 1.8 * hw),
        neck=(0, -0.2, 1.3 * hw),
        side=(-bw - 0.3, 0.1, 0.3),
        mark=(0, 0.22, 0.62),
    )


def _robot_head(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    fill, top, low = paint.on(d, "head"), -0.84, -0.26
    if d["head"] == "box":
        pen.box(-w, top, w, low, fill, 0.08, coat=True)
    elif d["head"] == "dome":
        pen.shape(
            [
                (-w, low),
                (-w, -0.5),
                (-w * 0.8, -0.7),
                (-w * 0.4, -0.84),
                (w * 0.4, -0.84),
                (w * 0.8, -0.7),
                (w, -0.5),
                (w, low),
            ],
            fill,
            coat=True,
        )
    elif d["head"] == "wide":
        pen.box(-w * 1.25, top + 0.06, w * 1.25, low, fill, 0.24, coat=True)
    elif d["head"] == "round":
        pen.ellipse(0, -0.55, w, 0.33, fill, coat=True)
    else:
        pen.shape(
            [(-w * 1.2, top), (w * 1.2, top), (w * 0.75, low), (-w * 0.75, low)], fill, coat=True
        )
    _robot_face(pen, d, w)


def _robot_face(pen: Pen, d: Design, w: float) -> None:
    if d["eyes"] == "visor":
        pen.box(-w * 0.78, -0.7, w * 0.78, -0.46, INK, 0.1)
        for x in (-0.36, 0.36):
            pen.ellipse(x * w, -0.58, 0.08, 0.08, (255, 236, 90), line=False)
    elif d["eyes"] == "one":
        pen.ellipse(0, -0.6, 0.2, 0.2, PAPER)
        pen.ellipse(0.03, -0.6, 0.11, 0.11, INK, line=False)
    else:
        for x in (-0.46 * w, 0.46 * w):
            if d["eyes"] == "round":
                pen.ellipse(x, -0.6, 0.14, 0.14, PAPER)
            else:
                pen.box(x - 0.13, -0.73, x + 0.13, -0.48, PAPER)
            pen.ellipse(x + 0.02, -0.6, 0.07, 0.08, INK, line=False)
    if d["mouth"] == "grille":
        pen.box(-0.5 * w, -0.42, 0.5 * w, -0.31, PAPER, line=False)
        for x in (-0.25, 0, 0.25):
            pen.stroke([(x * w, -0.42), (x * w, -0.31)], 0.035, INK, line=False)
    elif d["mouth"] == "line":
        pen.stroke([(-0.34 * w, -0.37), (0.34 * w, -0.37)], 0.06, INK, line=False)


def _robot_antenna(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    tip = mix(paint.second, (255, 90, 70), 0.6)
    if d["antenna"] == "ball":
        pen.stroke([(0, -0.7), (0, -0.98)], 0.05, GREY)
        pen.ellipse(0, -1.02, 0.11, 0.11, tip)
    elif d["antenna"] == "two":
        for s in (-1, 1):
            pen.stroke([(s * 0.16, -0.75), (s * 0.34, -1.02)], 0.05, GREY)
            pen.ellipse(s * 0.35, -1.04, 0.08, 0.08, tip)
    elif d["antenna"] == "zigzag":
        pen.stroke([(0, -0.76), (0.12, -0.88), (-0.12, -0.97), (0.08, -1.1)], 0.06, tip)
    elif d["antenna"] == "dish":
        pen.stroke([(0, -0.76), (0, -0.96)], 0.05, GREY)
        pen.shape([(-0.28, -1.1), (0.28, -1.1), (0.12, -0.92), (-0.12, -0.92)], paint.second)
    else:
        for s in (-1, 1):
            pen.ellipse(s * (w + 0.05), -0.56, 0.15, 0.19, paint.second)


def _robot_body(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    top, low = -0.16, 0.6
    if d["body"] == "box":
        pen.box(-w, top, w, low, paint.body, 0.06, coat=True)
    elif d["body"] == "barrel":
        pen.blob(
            [
                (-w * 0.75, top),
                (w * 0.75, top),
                (w * 1.08, 0.22),
                (w * 0.75, low),
                (-w * 0.75, low),
                (-w * 1.08, 0.22),
            ],
            paint.body,
            coat=True,
        )
    elif d["body"] == "funnel":
        pen.shape(
            [(-w * 1.2, top), (w * 1.2, top), (w * 0.72, low), (-w * 0.72, low)],
            paint.body,
            coat=True,
        )
    elif d["body"] == "egg":
        pen.ellipse(0, 0.22, w, 0.42, paint.body, coat=True)
    else:
        pen.shape(
            [(-w * 0.7, top), (w * 0.7, top), (w * 1.2, low), (-w * 1.2, low)],
            paint.body,
            coat=True,
        )
    if d.accented("panel"):
        pen.box(-w * 0.58, 0.0, w * 0.58, 0.46, paint.second, 0.06)
    if d.accented("stripe"):
        pen.box(-w * 0.66, 0.3, w * 0.66, 0.46, paint.second, line=False)
        pen.box(-w * 0.66, 0.0, w * 0.66, 0.16, paint.second, line=False)


def _robot_arms(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    fill, t = paint.on(d, "arms"), d.size("limb", 0.13, 0.2)
    for s in (-1, 1):
        x = s * (w + 0.28)
        if d["arms"] == "raised":
            pen.stroke([(s * w * 0.8, 0.1), (x, 0.08), (x + s * 0.06, -0.3)], t, fill)
            pen.ellipse(x + s * 0.06, -0.36, 0.15, 0.15, paint.second)
            continue
        pen.stroke([(s * w * 0.7, 0.0), (x, 0.1), (x, 0.44)], t, fill)
        if d["arms"] == "claw":
            pen.shape(
                [(x - 0.16, 0.72), (x - 0.16, 0.42), (x + 0.16, 0.42), (x + 0.16, 0.72), (x, 0.54)],
                paint.second,
            )
        elif d["arms"] == "ball":
            pen.ellipse(x, 0.52, 0.17, 0.17, paint.second)


def _robot_base(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    fill, t = paint.on(d, "base"), d.size("limb", 0.2, 0.28)
    if d["base"] == "legs":
        for s in (-1, 1):
            pen.box(s * 0.25 - t / 2, 0.5, s * 0.25 + t / 2, 0.9, fill)
            pen.box(s * 0.29 - 0.22, 0.84, s * 0.29 + 0.22, 1.0, fill, 0.06)
    elif d["base"] == "wheels":
        for s in (-1, 1):
            pen.ellipse(s * w * 0.7, 0.78, 0.22, 0.22, (70, 70, 80))
            pen.ellipse(s * w * 0.7, 0.78, 0.1, 0.1, paint.second, line=False)
    elif d["base"] == "track":
        pen.box(-w - 0.1, 0.62, w + 0.1, 1.0, (70, 70, 80), 0.18)
        for x in (-0.66, 0, 0.66):
            pen.ellipse(x * w, 0.81, 0.1, 0.1, paint.second, line=False)
    else:
        pen.stroke([(0, 0.5), (0.2, 0.66), (-0.2, 0.74), (0.2, 0.84), (0, 0.9)], 0.08, GREY)
        pen.box(-0.34, 0.86, 0.34, 1.0, fill, 0.06)
