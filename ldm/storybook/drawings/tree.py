"""The drawing of a tree: its traits, sizes and shapes."""

from __future__ import annotations

from ldm.storybook.parts import Anchors, Design, Paint
from ldm.storybook.pen import Pen, luminance

TRAITS = {
    "crown": ("round", "cloud", "fir", "tall", "umbrella", "drops"),
    "trunk": ("straight", "curved", "forked", "stout"),
    "fruit": ("none", "few", "many"),
    "ground": ("none", "roots", "mound"),
    "accent": ("highlight", "fruit", "skirt", "mound+fruit"),
}

SIZES = ("width", "trunk", "drop")

# Ellipses (x, y, rx, ry); x and rx are relative to the crown's width.
_CROWNS: dict[
    str, list[tuple[float, float, float, float]]
] = {  # ellipses (x, y, rx, ry) relative to the crown's width
    "round": [(0, -0.3, 0.86, 0.68)],
    "cloud": [
        (-0.52, 0.0, 0.46, 0.38),
        (0.52, 0.0, 0.46, 0.38),
        (0, -0.1, 0.6, 0.46),
        (0, -0.5, 0.6, 0.48),
    ],
    "tall": [(0, -0.3, 0.6, 0.72)],
    "umbrella": [(-0.62, -0.22, 0.42, 0.26), (0.62, -0.22, 0.42, 0.26), (0, -0.4, 0.84, 0.44)],
}


def draw(pen: Pen, d: Design, paint: Paint) -> Anchors:
    """A tree with a large crown in the body colour."""
    w = d.size("width", 0.85, 1.05)
    if d["ground"] == "mound":
        pen.ellipse(0, 0.96, 0.56, 0.14, paint.on(d, "mound"))
    _trunk(pen, d, paint)
    crown = d["crown"]
    _crown(pen, d, paint, w)
    _leaves(pen, d, paint, w)
    return Anchors(
        head=(0, {"umbrella": -0.72, "drops": -0.92}.get(crown, -0.88), 0.8),
        eyes=(0, -0.42 if crown != "fir" else -0.1, 1.15),
        neck=(0, 0.3 if crown in ("umbrella", "fir") else 0.42, 0.66 if crown != "fir" else 1.2),
        side=(-0.6 * w, -0.05, 0.3),
        mark=(0, -0.32 if crown != "fir" else 0.14, 0.62),
    )


def _crown(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    crown = d["crown"]
    if crown == "fir":
        for y, half in ((0.42, 0.78), (0.0, 0.64), (-0.4, 0.46)):
            pen.shape([(-half * w, y), (0, y - 0.62), (half * w, y)], paint.body, coat=True)
        if d.accented("skirt"):
            pen.shape(
                [(-0.78 * w, 0.42), (-0.62 * w, 0.3), (0.62 * w, 0.3), (0.78 * w, 0.42)],
                paint.second,
                line=False,
            )
    elif crown == "drops":
        for x, y in ((-0.46, -0.1), (0.46, -0.14), (0, -0.4)):
            pen.blob(
                [
                    (x * w, y - 0.62),
                    (x * w + 0.34, y + 0.1),
                    (x * w, y + 0.46),
                    (x * w - 0.34, y + 0.1),
                ],
                paint.body,
                coat=True,
            )
    else:
        for x, y, rx, ry in _CROWNS[crown]:
            pen.ellipse(x * w, y, rx * w, ry, paint.body, coat=True)


def _trunk(pen: Pen, d: Design, paint: Paint) -> None:
    bark = (112, 74, 48) if luminance(paint.body) > 90 else (164, 122, 86)
    t = d.size("trunk", 0.11, 0.18) * (1.5 if d["trunk"] == "stout" else 1.0)
    if d["ground"] == "roots":
        pen.shape([(-t * 2.6, 1.0), (0, 0.66), (t * 2.6, 1.0)], bark)
    if d["trunk"] == "curved":
        pen.stroke([(0.04, 0.94), (-0.1, 0.66), (0.02, 0.3), (0, 0)], 2 * t, bark)
    elif d["trunk"] == "forked":
        pen.stroke([(-0.42, 0.1), (0, 0.58), (0.42, 0.1)], 1.2 * t, bark)
        pen.box(-t, 0.5, t, 0.98, bark)
    else:
        pen.shape([(-t * 1.25, 0.98), (-t * 0.9, 0), (t * 0.9, 0), (t * 1.25, 0.98)], bark)


def _leaves(pen: Pen, d: Design, paint: Paint, w: float) -> None:
    if d.accented("highlight"):
        wide = 0.62 if d["crown"] == "tall" else 0.8
        shines = ((-0.62, -0.42), (-0.28, -0.74), (-0.68, -0.04))
        if d["crown"] == "fir":
            wide, shines = 1.0, ((-0.1, -0.6), (-0.16, -0.2), (-0.3, 0.24))
        for x, y in shines:
            pen.ellipse(x * wide * w, y, 0.19, 0.1, paint.second, angle=-30, line=False)
    if d.accented("skirt") and d["crown"] != "fir":
        pen.ellipse(
            0, 0.02 if d["crown"] != "umbrella" else -0.16, 0.5 * w, 0.14, paint.second, line=False
        )
    spots = [(-0.38, -0.1), (0.36, -0.2), (0.04, -0.5), (0.1, 0.1), (-0.3, -0.5), (0.4, -0.55)]
    if d["crown"] == "fir":
        spots = [(-0.36, 0.3), (0.32, 0.26), (0.0, -0.14), (0.04, -0.6), (-0.2, -0.1), (0.2, 0.0)]
    count = {"none": 3 if d.accented("fruit") else 0, "few": 3, "many": 6}[d["fruit"]]
    for x, y in spots[:count]:
        pen.ellipse(x * w, y, 0.1, 0.1, paint.second)
