"""What an object may wear or hold, and the marks only subjects bear."""

from __future__ import annotations

from math import cos, pi, sin
from random import Random

import numpy as np

from ldm.storybook.parts import INK, PAPER, Anchors
from ldm.storybook.pen import CANVAS, RGB, Pen, distance, luminance, mix

GOLD = (250, 200, 50)
BRIGHT: tuple[RGB, ...] = (
    (230, 50, 60),
    (50, 110, 230),
    (60, 180, 90),
    (250, 210, 60),
    (160, 80, 200),
    (250, 130, 180),
    (250, 250, 246),
)


def _bright(rng: Random, avoid: RGB) -> RGB:
    """A bright colour well away from `avoid`."""
    return rng.choice([rgb for rgb in BRIGHT if distance(rgb, avoid) > 120])


def top_hat(pen: Pen, at: Anchors, rng: Random, body: RGB, dark: bool) -> None:
    """A dark top hat with a coloured band."""
    x, y, w = at.head
    w = max(w, 0.66)
    felt, band = rng.choice(((38, 34, 46), (52, 40, 60), (30, 36, 58))), _bright(rng, (40, 36, 48))
    line, pen.line = pen.line, PAPER if dark or luminance(body) < 90 else pen.line
    h = rng.uniform(0.46, 0.56)
    pen.box(x - 0.33 * w, y - h, x + 0.33 * w, y + 0.02, felt)
    pen.box(x - 0.33 * w, y - 0.2, x + 0.33 * w, y - 0.04, band, line=False)
    pen.box(x - 0.58 * w, y - 0.05, x + 0.58 * w, y + 0.08, felt, 0.05)
    pen.line = line


def crown(pen: Pen, at: Anchors, rng: Random, body: RGB, dark: bool) -> None:
    """A golden crown with points and jewels."""
    x, y, w = at.head
    w, h, n = max(w, 0.66) * 0.5, rng.uniform(0.36, 0.46), rng.choice((3, 3, 5))
    points = [(x - w, y + 0.08)]
    for i in range(n):
        left, step = x - w * 1.1 + 2.2 * w * i / n, 2.2 * w / n
        points += [(left + (0.5 if 0 < i < n - 1 else (0.12 if i == 0 else 0.88)) * step, y - h)]
        if i < n - 1:
            points.append((left + step, y - 0.4 * h))
    pen.shape([*points, (x + w, y + 0.08)], GOLD)
    pen.box(x - w, y - 0.08, x + w, y + 0.08, mix(GOLD, (220, 130, 20), 0.45), line=False)
    jewel = rng.choice(((220, 40, 70), (60, 110, 230), (40, 170, 110)))
    for dx in (-0.55, 0.0, 0.55):
        pen.ellipse(x + dx * w, y, 0.07, 0.07, jewel, line=False)


def scarf(pen: Pen, at: Anchors, rng: Random, body: RGB, dark: bool) -> None:
    """A wide scarf with a hanging, striped end."""
    x, y, w = at.neck
    fill = _bright(rng, body)
    stripe = _bright(rng, fill)
    end = x + 0.26 * w
    h = rng.uniform(0.42, 0.54)
    pen.box(end - 0.13, y, end + 0.13, y + h, fill)
    for k in (0.5, 0.8):
        pen.box(end - 0.13, y + h * k, end + 0.13, y + h * k + 0.08, stripe, line=False)
    pen.box(x - 0.54 * w, y - 0.11, x + 0.54 * w, y + 0.12, fill, 0.1)
    for k in (-0.3, 0.02):
        pen.box(x + k * w - 0.05, y - 0.11, x + k * w + 0.05, y + 0.12, stripe, line=False)


def sunglasses(pen: Pen, at: Anchors, rng: Random, body: RGB, dark: bool) -> None:
    """Large dark glasses with a glint."""
    x, y, w = at.eyes
    w = max(w, 0.7)
    r, square = 0.25 * w, rng.random() < 0.5
    line, pen.line = pen.line, PAPER if luminance(body) < 90 else INK
    pen.stroke([(x - 0.5 * w, y - 0.05), (x + 0.5 * w, y - 0.05)], 0.06, INK)
    for s in (-1, 1):
        cx = x + s * 0.28 * w
        if square:
            pen.box(cx - r, y - 0.15, cx + r, y + 0.17, INK, 0.05)
        else:
            pen.ellipse(cx, y, r, min(r, 0.21), INK)
        pen.stroke([(cx - 0.5 * r, y + 0.06), (cx, y - 0.06)], 0.05, (150, 190, 220), line=False)
    pen.line = line


def balloon(pen: Pen, at: Anchors, rng: Random, body: RGB, dark: bool) -> None:
    """A large balloon on a string, kept inside the picture."""
    hand = pen.place([at.side[:2]])[0]
    fill = _bright(rng, body)
    r = rng.uniform(26, 31)
    outward = -1 if hand[0] < CANVAS / 2 else 1
    x = float(np.clip(hand[0] + outward * rng.uniform(20, 40), r + 5, CANVAS - r - 5))
    y = float(np.clip(hand[1] - 140, 1.25 * r + 4, CANVAS * 0.3))
    draw, line = pen.draw, pen.line
    bend = ((x + hand[0]) / 2 - outward * 6, (y + hand[1]) / 2)
    draw.line([(x, y + 1.2 * r), bend, tuple(hand)], fill=line, width=9)
    draw.line([(x, y + 1.2 * r), bend, tuple(hand)], fill=PAPER, width=5)
    o = 5
    draw.polygon([(x - 12, y + 1.45 * r + o), (x, y + r), (x + 12, y + 1.45 * r + o)], line)
    draw.ellipse((x - r - o, y - 1.2 * r - o, x + r + o, y + 1.2 * r + o), fill=line)
    draw.polygon([(x - 7, y + 1.45 * r), (x, y + r), (x + 7, y + 1.45 * r)], fill)
    draw.ellipse((x - r, y - 1.2 * r, x + r, y + 1.2 * r), fill=fill)
    draw.ellipse(
        (x - 0.6 * r, y - 0.8 * r, x - 0.2 * r, y - 0.3 * r), fill=mix(fill, (255, 255, 255), 0.75)
    )


# Each takes the pen, the anchors, a random source, the body colour and whether the setting is dark.
ACCESSORY_DRAWINGS = {
    "wearing a top hat": top_hat,
    "wearing a crown": crown,
    "wearing a scarf": scarf,
    "wearing sunglasses": sunglasses,
    "holding a balloon": balloon,
}


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    radii = [1.0, inner] * points
    angles = [pi * i / points - pi / 2 for i in range(2 * points)]
    return [(r * cos(a), r * sin(a)) for r, a in zip(radii, angles, strict=True)]


def _arc(r: float, start: float, stop: float, dx: float = 0.0) -> list[tuple[float, float]]:
    return [(dx + r * cos(a), r * sin(a)) for a in np.linspace(start, stop, 14)]


_T = np.linspace(0, 2 * pi, 24, endpoint=False)
MARKS: dict[str, list[tuple[float, float]]] = {
    "star": _star(5, 0.45),
    "heart": [
        (x / 16.5, -y / 16.5 - 0.1)
        for x, y in zip(
            16 * np.sin(_T) ** 3,
            13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T),
            strict=True,
        )
    ],
    "bolt": [
        (0.1, -1.1),
        (-0.7, 0.15),
        (-0.1, 0.15),
        (-0.3, 1.1),
        (0.7, -0.3),
        (0.1, -0.3),
        (0.5, -1.1),
    ],
    "ring": _arc(1.0, 0, 2 * pi) + _arc(0.48, 2 * pi, 0),
    "cross": [
        (-0.34, -1),
        (0.34, -1),
        (0.34, -0.34),
        (1, -0.34),
        (1, 0.34),
        (0.34, 0.34),
        (0.34, 1),
        (-0.34, 1),
        (-0.34, 0.34),
        (-1, 0.34),
        (-1, -0.34),
        (-0.34, -0.34),
    ],
    "crescent": _arc(1.0, 0.25 * pi, 1.75 * pi, 0.15) + _arc(0.72, 1.7 * pi, 0.3 * pi, 0.5),
    "diamond": [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)],
    "arrow": [(0, -1.1), (0.95, 0), (0.36, 0), (0.36, 1), (-0.36, 1), (-0.36, 0), (-0.95, 0)],
    "burst": _star(8, 0.6),
    "clover": [
        ((0.62 + 0.42 * cos(4 * a)) * cos(a), (0.62 + 0.42 * cos(4 * a)) * sin(a))
        for a in np.linspace(0, 2 * pi, 48, endpoint=False)
    ],
}


def draw_mark(pen: Pen, at: Anchors, mark: str, rgb: RGB) -> None:
    """A subject's mark on its body, outlined so that it stands out."""
    x, y, w = at.mark
    r = max(w, 0.42) / 2
    line, width = pen.line, pen.line_width
    pen.line, pen.line_width = (
        (INK if luminance(rgb) > 110 else PAPER),
        max(2, round(0.04 * pen.unit)),
    )
    pen.shape([(x + r * px, y + r * py) for px, py in MARKS[mark]], rgb)
    pen.line, pen.line_width = line, width
