"""Pictures to test with, and colours to look for in them."""

import numpy as np
import torch
from PIL import Image

from ldm.randomness import generator

RED, GREEN, BLUE, WHITE = (220, 30, 20), (10, 160, 40), (20, 40, 200), (255, 255, 255)


def two_halves(size=(96, 64), left=RED, right=BLUE) -> Image.Image:
    """Left half of one colour, right half of another."""
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def detailed(size=(400, 300)) -> Image.Image:
    """A picture whose JPEG is long enough to be cut anywhere."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=generator(0, "test picture"))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def colour_at(picture: Image.Image, x: float, y: float) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.array(picture.getpixel((int(x * picture.width), int(y * picture.height))))


def assert_close(colour, expected, tolerance=12):
    assert np.abs(np.array(colour, int) - np.array(expected, int)).max() <= tolerance, (
        f"{colour} is not {expected}"
    )
