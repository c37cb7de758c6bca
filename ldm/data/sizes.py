"""What SDXL is told of a picture's size: six numbers a sample (arXiv 2307.01952, section 2.2).

Height and width of the file, top and left of the crop, height and width of what is trained on or
drawn, in pixels; the order is diffusers'. So small and cut pictures can be learnt from without
being drawn like that.
"""

import torch

from ldm.data.images import Box, Size

SIZES = 6  # numbers a sample


def sizes_of_crop(
    original: Size, seen: Size, box: Box, mirror: bool, target: Size
) -> list[float]:
    """The sizes of a box cut out of a picture, and resized to `target`.

    original: width and height of the file, upright; seen: those of the picture that `box` was cut
    out of, a smaller decoding of it perhaps. The crop is told in pixels of the picture resized as the
    box was, the mirrored picture where `mirror`, as in diffusers' and kohya's training.
    """
    left, top, right, bottom = box
    across, down = target[0] / (right - left), target[1] / (bottom - top)
    if mirror:
        left = seen[0] - right
    crop = [float(round(top * down)), float(round(left * across))]
    return [float(original[1]), float(original[0]), *crop, float(target[1]), float(target[0])]


def sizes_of_whole(height: int, width: int, count: int) -> torch.Tensor:
    """The sizes of `count` pictures that nothing is cut off, nor resized: [count, 6], float32."""
    whole = [height, width, 0, 0, height, width]
    return torch.tensor([whole] * count, dtype=torch.float32)
