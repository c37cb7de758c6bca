"""Five natural settings, and the shapes that all settings are made of."""

from __future__ import annotations

from random import Random

from PIL import ImageDraw

from ldm.storybook.pen import CANVAS, RGB

W = CANVAS


def ball(
    draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: RGB, squash: float = 1.0
) -> None:
    """A disc at (x, y) with radius `r` pixels, flattened by `squash`."""
    draw.ellipse((x - r, y - r * squash, x + r, y + r * squash), fill=fill)


def ground(draw: ImageDraw.ImageDraw, rng: Random, y: float, fill: RGB, wave: float = 10.0) -> None:
    """Everything below a gently rising or falling edge near `y`."""
    a, b, c = (y + rng.uniform(-wave, wave) for _ in range(3))
    draw.polygon(
        [
            (0, a),
            (W * 0.25, (a + b) / 2 - wave / 3),
            (W / 2, b),
            (W * 0.8, c + wave / 3),
            (W, c),
            (W, W),
            (0, W),
        ],
        fill,
    )


def beach(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Pale sky, turquoise sea, yellow sand, a sun and a parasol."""
    draw.rectangle((0, 0, W, W), (170, 226, 250))
    horizon = rng.uniform(88, 112)
    side = rng.choice((0, 1))
    ball(draw, W * (0.86 - 0.72 * side), rng.uniform(30, 44), rng.uniform(24, 32), (255, 226, 70))
    draw.rectangle((0, horizon, W, W), (30, 176, 196))
    for i in range(5):
        x = rng.uniform(-20, 40) + i * 56
        draw.line((x, horizon + 18, x + 30, horizon + 18), (190, 242, 244), 6)
    shore = horizon + rng.uniform(36, 52)
    ground(draw, rng, shore - 9, (240, 252, 250), 9)
    ground(draw, rng, shore + 4, (250, 222, 150), 9)
    x = W * (0.13 + 0.74 * side)
    draw.line((x, shore - 70, x, shore + 44), (150, 110, 70), 7)
    top, half = shore - 92, 44
    for i in range(4):
        fill = ((236, 70, 70), (255, 250, 240))[i % 2]
        draw.polygon(
            [
                (x, top),
                (x - half + i * half / 2, top + 38),
                (x - half + (i + 1) * half / 2, top + 38),
            ],
            fill,
        )


def snow(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Pale lilac sky, white hills, snowy firs and big flakes."""
    draw.rectangle((0, 0, W, W), (168, 190, 226))
    horizon = rng.uniform(104, 130)
    for x in (rng.uniform(8, 40), rng.uniform(60, 90), rng.uniform(190, 246)):
        for k in range(3):
            y, half = horizon - 74 + 26 * k, 18 + 9 * k
            draw.polygon([(x, y - 26), (x - half, y + 26), (x + half, y + 26)], (70, 118, 120))
            draw.polygon(
                [(x, y - 26), (x - half * 0.55, y + 2), (x + half * 0.55, y + 2)], (250, 252, 255)
            )
    ground(draw, rng, horizon, (222, 232, 246), 14)
    ground(draw, rng, horizon + 42, (248, 250, 255), 12)
    for _ in range(22):
        ball(
            draw, rng.uniform(0, W), rng.uniform(0, W * 0.62), rng.uniform(4, 7.5), (255, 255, 255)
        )


def night(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Deep indigo sky, yellow crescent, stars, a dark hill."""
    sky = (30, 30, 92)
    draw.rectangle((0, 0, W, W), sky)
    for _ in range(13):
        x, y, r = rng.uniform(0, W), rng.uniform(0, 150), rng.uniform(5, 9)
        draw.polygon([(x, y - r), (x + r / 3, y), (x, y + r), (x - r / 3, y)], (255, 246, 190))
        draw.polygon([(x - r, y), (x, y + r / 3), (x + r, y), (x, y - r / 3)], (255, 246, 190))
    x, y, r = (
        W * rng.choice((0.15, 0.85)) + rng.uniform(-8, 8),
        rng.uniform(36, 50),
        rng.uniform(27, 34),
    )
    ball(draw, x, y, r, (255, 232, 120))
    ball(draw, x + r * 0.5, y - r * 0.2, r * 0.88, sky)
    ground(draw, rng, rng.uniform(150, 170), (26, 62, 82), 16)
    ground(draw, rng, rng.uniform(196, 212), (18, 46, 64), 12)


def forest(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Misty green, brown trunks, a dark canopy along the top."""
    draw.rectangle((0, 0, W, W), (196, 224, 164))
    horizon = rng.uniform(150, 172)
    for i in range(6):
        x, half = 20 + 43 * i + rng.uniform(-12, 12), rng.uniform(8, 14)
        draw.rectangle(
            (x - half, 0, x + half, horizon + 12), ((112, 78, 50), (140, 100, 66))[i % 2]
        )
    for i in range(8):
        ball(
            draw,
            36.5 * i + rng.uniform(-10, 10),
            rng.uniform(0, 22),
            rng.uniform(34, 46),
            ((36, 98, 56), (54, 124, 62))[i % 2],
        )
    ground(draw, rng, horizon, (98, 146, 66), 8)
    for _ in range(9):
        x, y = rng.uniform(0, W), rng.uniform(horizon + 18, W)
        draw.polygon(
            [
                (x - 14, y),
                (x - 9, y - 22),
                (x - 3, y - 6),
                (x + 1, y - 28),
                (x + 5, y - 6),
                (x + 11, y - 20),
                (x + 14, y),
            ],
            (54, 112, 50),
        )


def desert(draw: ImageDraw.ImageDraw, rng: Random) -> None:
    """Warm peach sky, ochre dunes, tall cacti, a white-hot sun."""
    draw.rectangle((0, 0, W, W), (255, 214, 158))
    side = rng.choice((0, 1))
    x = W * (0.2 + 0.6 * side) + rng.uniform(-16, 16)
    ball(draw, x, 46, 38, (255, 232, 186))
    ball(draw, x, 46, 26, (255, 250, 226))
    horizon = rng.uniform(112, 136)
    ground(draw, rng, horizon, (226, 148, 80), 22)
    for x in (
        W * (0.88 - 0.76 * side) + rng.uniform(-6, 6),
        W * (0.1 + 0.8 * side) + rng.uniform(-6, 6),
    ):
        y, k = horizon + rng.uniform(16, 40), rng.uniform(0.8, 1.2)
        draw.rounded_rectangle((x - 10 * k, y - 100 * k, x + 10 * k, y), 10 * k, (56, 128, 84))
        for s, h in ((-1, 44), (1, 60)):
            draw.line(
                [(x, y - h * k), (x + s * 24 * k, y - h * k), (x + s * 24 * k, y - (h + 30) * k)],
                (56, 128, 84),
                round(12 * k),
            )
    ground(draw, rng, horizon + rng.uniform(48, 60), (240, 176, 100), 18)
    for _ in range(4):
        x, y = rng.uniform(0, W), rng.uniform(208, 250)
        draw.line((x - 22, y, x + 22, y - 4), (216, 146, 78), 5)
