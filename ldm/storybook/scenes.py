"""The ten settings: each paints the whole canvas with a few bold cues."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

from ldm.storybook.landscapes import W, ball, beach, desert, forest, ground, night, snow
from ldm.storybook.pen import CANVAS, RGB


def _cloud(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: RGB) -> None:
    for dx, dy, k in ((-1.1, 0.2, 0.7), (0, -0.15, 1.0), (1.1, 0.2, 0.75)):
        ball(draw, x + dx * r, y + dy * r, r * k, fill)
    draw.rectangle((x - 1.2 * r, y + 0.2 * r, x + 1.2 * r, y + 0.9 * r), fill)


def city(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Lavender sky, tower blocks with lit windows, a dark road with dashes."""
    draw.rectangle((0, 0, W, W), (216, 208, 232))
    road = rng.uniform(188, 204)
    i, x = 0, rng.uniform(-24, -4)
    while x < W:
        width, top = rng.uniform(38, 56), rng.uniform(14, 92)
        draw.rectangle(
            (x, top, x + width, road), ((112, 120, 146), (142, 132, 158), (92, 108, 132))[i % 3]
        )
        for column in (0.16, 0.58):
            for row in range(4):
                left, y = x + column * width, top + 12 + row * 25
                draw.rectangle((left, y, left + 0.26 * width, y + 13), (255, 238, 160))
        x, i = x + width + rng.uniform(0, 8), i + 1
    draw.rectangle((0, road - 14, W, road), (196, 192, 196))
    draw.rectangle((0, road, W, W), (78, 80, 90))
    start = rng.uniform(-50, 0)
    for k in range(5):
        left = start + 70 * k
        draw.rectangle((left, road + 30, left + 40, road + 38), (250, 246, 220))


def under_water(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Blue depths in bands, bubbles, seaweed and a dim sea floor."""
    draw.rectangle((0, 0, W, W), (96, 196, 226))
    for depth, fill in ((34, (66, 168, 214)), (96, (44, 138, 196)), (164, (32, 112, 174))):
        ground(draw, rng, depth + rng.uniform(-10, 10), fill, 9)
    ground(draw, rng, rng.uniform(218, 230), (150, 152, 132), 9)
    for x in (
        rng.uniform(6, 26),
        rng.uniform(30, 56),
        rng.uniform(200, 222),
        rng.uniform(228, 250),
    ):
        height, sway = rng.uniform(70, 150), rng.choice((-1, 1)) * 9
        joints = [(x + sway * (1 if k % 2 else -1), 244 - height * k / 5) for k in range(6)]
        draw.line(joints, rng.choice(((22, 128, 92), (40, 156, 100))), 13, joint=None)
        for px, py in joints:
            ball(draw, px, py, 7, (30, 142, 96))
    for _ in range(9):
        x, y, r = rng.uniform(0, W), rng.uniform(0, 190), rng.uniform(6, 13)
        ball(draw, x, y, r, (214, 244, 252))
        ball(draw, x, y, r - 3.5, (116, 202, 232))


def moon(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Black sky, the Earth, grey ground with craters."""
    draw.rectangle((0, 0, W, W), (10, 10, 16))
    for _ in range(16):
        ball(draw, rng.uniform(0, W), rng.uniform(0, 130), rng.uniform(2, 4), (250, 250, 255))
    x, y, r = (
        W * rng.choice((0.17, 0.83)) + rng.uniform(-8, 8),
        rng.uniform(38, 52),
        rng.uniform(28, 36),
    )
    ball(draw, x, y, r, (64, 132, 226))
    draw.polygon(
        [
            (x - r * 0.7, y - r * 0.5),
            (x + r * 0.1, y - r * 0.7),
            (x, y - r * 0.1),
            (x - r * 0.5, y + r * 0.3),
        ],
        (96, 190, 100),
    )
    draw.polygon(
        [(x + r * 0.2, y + r * 0.1), (x + r * 0.8, y), (x + r * 0.4, y + r * 0.7)], (96, 190, 100)
    )
    draw.line((x - r * 0.5, y + r * 0.55, x + r * 0.1, y + r * 0.55), (250, 252, 255), 6)
    horizon = rng.uniform(126, 150)
    ground(draw, rng, horizon, (176, 176, 182), 14)
    for i in range(7):
        x, y = rng.uniform(0, W), horizon + 24 + 13 * i
        r = rng.uniform(14, 26)
        ball(draw, x, y, r, (132, 132, 140), 0.45)
        ball(draw, x + 3, y + 3, r * 0.75, (150, 150, 158), 0.4)


def rain(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Slate sky, dark clouds, slanting drops, puddles on the ground."""
    draw.rectangle((0, 0, W, W), (142, 156, 172))
    ground(draw, rng, rng.uniform(178, 194), (108, 128, 112), 8)
    for _ in range(3):
        x, y, r = rng.uniform(10, 246), rng.uniform(208, 246), rng.uniform(26, 44)
        ball(draw, x, y, r, (160, 196, 222), 0.28)
    lean = rng.uniform(7, 13)
    for i in range(7):
        for j in range(5):
            x, y = 40 * i + rng.uniform(-4, 28), 44 + 42 * j + rng.uniform(-10, 10)
            draw.line((x, y, x - lean, y + 27), (206, 232, 250), 5)
    for i in range(4):
        _cloud(
            draw,
            24 + 70 * i + rng.uniform(-14, 14),
            rng.uniform(8, 26),
            rng.uniform(27, 36),
            ((76, 84, 100), (94, 102, 118))[i % 2],
        )


def kitchen(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Cream tiled wall, a shelf with jars, a window, a checkered floor."""
    draw.rectangle((0, 0, W, W), (252, 236, 204))
    floor, shift = rng.uniform(176, 194), rng.uniform(0, 30)
    for i in range(10):
        draw.line((shift + 30 * i, 0, shift + 30 * i, floor), (234, 212, 172), 3)
        draw.line((0, shift + 30 * i - 20, W, shift + 30 * i - 20), (234, 212, 172), 3)
    side = rng.choice((0, 1))
    left = (20 if side else 168) + rng.uniform(-8, 8)
    draw.rectangle((left, 16, left + 70, 84), (255, 255, 252))
    draw.rectangle((left + 7, 23, left + 63, 77), (150, 212, 240))
    draw.line((left + 35, 16, left + 35, 84), (255, 255, 252), 7)
    draw.line((left, 50, left + 70, 50), (255, 255, 252), 7)
    left = (136 if side else 8) + rng.uniform(-6, 10)
    draw.rectangle((left, 66, left + 104, 76), (150, 98, 60))
    for i, fill in enumerate(((214, 92, 70), (84, 150, 130), (226, 170, 70))):
        x, h = left + 8 + 33 * i, rng.uniform(28, 44)
        draw.rounded_rectangle((x, 66 - h, x + 24, 65), 6, fill)
        draw.rectangle((x + 3, 60 - h, x + 21, 68 - h), (120, 78, 50))
    draw.rectangle((0, floor - 8, W, floor), (150, 98, 60))
    draw.rectangle((0, floor, W, W), (246, 246, 240))
    for row in range(4):
        for i in range(8):
            x, y = shift - 40 + 44 * i + 22 * (row % 2), floor + 22 * row
            draw.rectangle((x, y, x + 22, y + 22), (108, 142, 152))


SETTINGS: dict[str, Callable[[ImageDraw.ImageDraw, Random], None]] = {
    "on the beach": beach,
    "in the snow": snow,
    "at night": night,
    "in the forest": forest,
    "in the desert": desert,
    "in the city": city,
    "under water": under_water,
    "on the moon": moon,
    "in the rain": rain,
    "in the kitchen": kitchen,
}
DARK_SETTINGS = ("at night", "on the moon")


def paint_setting(setting: str, seed: int) -> Image.Image:
    """The empty canvas of a setting, (CANVAS, CANVAS) RGB; `seed` fixes its details."""
    image = Image.new("RGB", (CANVAS, CANVAS))
    SETTINGS[setting](ImageDraw.Draw(image), Random(seed))
    return image
