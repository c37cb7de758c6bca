"""Aspect-ratio buckets: each picture in a size near its own form, so that little is cut off.

All sizes have about the same area, so that none costs more than a square does. After NovelAI,
"NovelAI Improvements on Stable Diffusion" (2022), section "Aspect Ratio Bucketing".
"""

from functools import lru_cache

from ldm.data.images import Size

LONGEST = 4  # times the other side, as in SDXL's training (arXiv 2307.01952, appendix I)


@lru_cache
def bucket_for(picture: Size, resolution: int, multiple: int, enlarge: bool = False) -> Size:
    """Width and height that a picture of this width and height is trained in, in pixels.

    Both are multiples of `multiple`, their product is at most resolution^2, neither is more than 4
    times the other. Of these sizes it is the one with the largest area x (share of the picture that
    is left)^2: what is cut off is lost for good, so it counts more than detail. (The nearest aspect
    ratio alone, in steps of 64 at 512 pixels, would cut a tenth off every 3:2 photograph for 640 x
    384, where 576 x 384 takes all of it; smaller sizes of an exact ratio would waste detail.)
    Unless `enlarge`, only sizes that make no pixel larger; if all do, those that do it least.

    ValueError where resolution is below `multiple`.
    """
    sizes = bucket_sizes(resolution, multiple)
    if not enlarge:
        least = max(1.0, min(enlargement(picture, size) for size in sizes))
        sizes = [size for size in sizes if enlargement(picture, size) <= least]
    return max(sizes, key=lambda size: size[0] * size[1] * share_left(picture, size) ** 2)


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """Every size, width and height, that a picture may be trained in."""
    if not 1 <= multiple <= resolution:
        raise ValueError(f"no size of sides that are multiples of {multiple} in {resolution}^2")
    sides = range(multiple, LONGEST * resolution + 1, multiple)
    return [
        (width, height)
        for width in sides
        for height in sides
        if width * height <= resolution**2 and max(width, height) <= LONGEST * min(width, height)
    ]


def enlargement(picture: Size, size: Size) -> float:
    """How many times larger a picture becomes that is resized until it covers `size`."""
    return max(size[0] / picture[0], size[1] / picture[1])


def share_left(picture: Size, size: Size) -> float:
    """The share of a picture that is left, 0..1, when it is cut to the form of `size`."""
    sides = (size[0] * picture[1], size[1] * picture[0])
    return min(sides) / max(sides)
