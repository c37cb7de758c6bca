"""A pen that draws outlined flat shapes in an object's own coordinates.

Objects are drawn in a unit box: x and y run from -1 to 1, y points down, and
the ground is at y = 1. The pen maps that box to a supersampled canvas with a
position, a scale, a tilt and an optional mirror.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import cos, radians, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | np.ndarray  # (N, 2)

SIZE = 64  # finished picture, pixels
SUPERSAMPLING = 4
CANVAS = SIZE * SUPERSAMPLING

_ANGLES = np.linspace(0.0, 2.0 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)  # (32, 2)


def clamp(r: float, g: float, b: float) -> RGB:
    """The nearest 8-bit colour."""
    return (
        min(255, max(0, round(r))),
        min(255, max(0, round(g))),
        min(255, max(0, round(b))),
    )


def mix(a: RGB, b: RGB, amount: float) -> RGB:
    """Blend two colours: `amount` 0 gives `a`, 1 gives `b`."""
    r, g, b_ = (p + (q - p) * amount for p, q in zip(a, b, strict=True))
    return clamp(r, g, b_)


def luminance(rgb: RGB) -> float:
    """Perceived lightness of a colour, 0 to 255 (Rec. 601 weights)."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def distance(a: RGB, b: RGB) -> float:
    """Euclidean distance of two colours in 8-bit RGB, 0 to 441."""
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5


@lru_cache(maxsize=64)
def _smoother(count: int, steps: int) -> np.ndarray:
    """Matrix (count * steps, count) taking control points to a closed Catmull-Rom curve."""
    matrix = np.zeros((count * steps, count))
    for i in range(count):
        for j in range(steps):
            t = j / steps
            weights = (
                0.5 * (-t + 2 * t**2 - t**3),
                0.5 * (2 - 5 * t**2 + 3 * t**3),
                0.5 * (t + 4 * t**2 - 3 * t**3),
                0.5 * (-(t**2) + t**3),
            )
            for k, weight in enumerate(weights):
                matrix[i * steps + j, (i + k - 1) % count] += weight
    return matrix


def smooth(points: Points, steps: int = 5) -> np.ndarray:
    """Closed smooth curve through `points` (N, 2) -> (N * steps, 2)."""
    return _smoother(len(points), steps) @ np.asarray(points)


def bend(points: Points) -> np.ndarray:
    """Open smooth line with the ends of `points` (N, 2), by cutting corners twice (Chaikin)."""
    line = np.asarray(points)
    for _ in range(2):
        near, far = 0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]
        cut = np.stack([near, far], axis=1).reshape(-1, 2)
        line = np.concatenate([line[:1], cut[1:-1], line[-1:]])
    return line


def circle(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Ellipse outline (32, 2), turned by `angle` degrees."""
    points = _CIRCLE * (rx, ry)
    if angle:
        c, s = cos(radians(angle)), sin(radians(angle))
        points = points @ np.array([[c, s], [-s, c]])
    return points + (cx, cy)


class Pen:
    """Draws on `image` (CANVAS x CANVAS, RGB) in an object's unit coordinates.

    x, y: the box centre on the picture, 0 to 1. scale: the box's width as a
    share of the picture's. tilt: degrees. line: the outline colour.
    """

    def __init__(
        self, image: Image.Image, pose: tuple[float, float, float, float, bool], line: RGB
    ):
        x, y, scale, tilt, mirror = pose
        self.image, self.draw, self.line = image, ImageDraw.Draw(image), line
        self.unit = scale * CANVAS / 2
        c, s = cos(radians(tilt)) * self.unit, sin(radians(tilt)) * self.unit
        flip = -1.0 if mirror else 1.0
        self._matrix = np.array([[c * flip, s * flip], [-s, c]])
        self._offset = np.array([x * CANVAS, y * CANVAS])
        self.line_width = max(3, round(0.062 * self.unit))
        self._pattern: Image.Image | None = None
        self._pattern_rgb: RGB = line

    def place(self, points: Points) -> np.ndarray:
        """Unit coordinates (N, 2) -> canvas pixels (N, 2)."""
        return np.asarray(points) @ self._matrix + self._offset

    def set_pattern(self, pattern: str, rgb: RGB, shift: float) -> None:
        """Paint `coat` shapes from now on "striped" or "spotted"; "plain" does nothing."""
        if pattern == "plain":
            return
        self._pattern, self._pattern_rgb = Image.new("L", self.image.size), rgb
        draw = ImageDraw.Draw(self._pattern)
        if pattern == "striped":
            for i in range(-5, 6):
                x = 0.34 * (i + shift)
                ends = self.place([(x - 0.25, -1.3), (x + 0.25, 1.3)]).ravel().tolist()
                draw.line(ends, fill=255, width=round(0.15 * self.unit))
            return
        grid = [(i, j) for i in range(-3, 4) for j in range(-4, 5)]
        spots = self.place(
            [(0.42 * (i + shift + 0.5 * (j % 2)), 0.31 * (j + shift)) for i, j in grid]
        )
        radius = 0.115 * self.unit
        for x, y in spots.tolist():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    def shape(self, points: Points, fill: RGB, line: bool = True, coat: bool = False) -> None:
        """Closed polygon (N, 2); `line` outlines it, `coat` lets the pattern show on it."""
        flat = self.place(points).ravel().tolist()
        if line:
            self._outline(flat)
        self.draw.polygon(flat, fill=fill)
        if coat and self._pattern is not None:
            mask = Image.new("L", self.image.size)
            ImageDraw.Draw(mask).polygon(flat, fill=255)
            self.image.paste(self._pattern_rgb, (0, 0), ImageChops.darker(mask, self._pattern))

    def _outline(self, flat: list[float]) -> None:
        width = 2 * self.line_width
        self.draw.line(flat + flat[:2], fill=self.line, width=width)
        if len(flat) <= 32:  # few corners: round them
            self._dots(flat, width / 2, self.line)

    def _dots(self, flat: list[float], radius: float, fill: RGB) -> None:
        for x, y in zip(flat[::2], flat[1::2], strict=True):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def ellipse(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        fill: RGB,
        angle: float = 0.0,
        line: bool = True,
        coat: bool = False,
    ) -> None:
        """Filled ellipse with radii `rx`, `ry`, turned by `angle` degrees."""
        self.shape(circle(cx, cy, rx, ry, angle), fill, line, coat)

    def blob(self, points: Points, fill: RGB, line: bool = True, coat: bool = False) -> None:
        """Smooth closed shape through the control points (N, 2)."""
        self.shape(smooth(points), fill, line, coat)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: RGB,
        corner: float = 0.0,
        line: bool = True,
        coat: bool = False,
    ) -> None:
        """Box from (x0, y0) to (x1, y1) with corners rounded by the radius `corner`."""
        points: Points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        if corner:
            centres = [(x1 - corner, y1 - corner), (x0 + corner, y1 - corner)]
            centres += [(x0 + corner, y0 + corner), (x1 - corner, y0 + corner)]
            arcs = [
                _CIRCLE[8 * i : 8 * i + 9 : 2] if i < 3 else _CIRCLE[[24, 26, 28, 30, 0]]
                for i in range(4)
            ]
            points = np.concatenate(
                [arc * corner + centre for arc, centre in zip(arcs, centres, strict=True)]
            )
        self.shape(points, fill, line, coat)

    def stroke(self, points: Points, width: float, fill: RGB, line: bool = True) -> None:
        """Open thick line (N, 2) with round ends and joints, `width` in units."""
        flat = self.place(points).ravel().tolist()
        thickness = max(2, round(width * self.unit))
        if line:
            self.draw.line(flat, fill=self.line, width=thickness + 2 * self.line_width)
            self._dots(flat, thickness / 2 + self.line_width, self.line)
        self.draw.line(flat, fill=fill, width=thickness)
        self._dots(flat, thickness / 2, fill)
