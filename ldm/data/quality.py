"""How good a picture is to learn from, by measures of its pixels: sharp, well lit, like another?

All are taken of what training sees of a picture (its crop), at `SIDE` pixels along its short side,
so that neither the file's size nor the base decides. The thresholds were set between two groups of
pictures: 25 photographs of five subjects (DreamBooth's backpack_dog, dog3, duck_toy, monster_toy,
robot_toy) and the ten drawings in data/subjects as they are, and the same spoilt on purpose.

    measure      as they are: photos; drawings   spoilt: photos; drawings               threshold
    softness     .34-.57; .25-.42                blurred (Gaussian) by 1.5 pixels:      SOFT .65
                                                 .73-.83; .69-.77; moved by 9 pixels:
                                                 .78-.90; .58-.85
    white        0-.05; 0-.03                    two stops brighter: 0-.77; .08-.41,    WHITE .25
    dark         0-.08; 0-.22                    where dark is below .04                DARKEST .04
    light        .61-.97; .69-.93                three stops darker: .22-.37; .26-.36   DIM .45
    distance     two of a set: .36 at least;     JPEG 50, a quarter brighter, turned by EQUAL .34
                 .40 at least                    2 degrees, shifted by 4 %, mirrored:
                                                 0-.31; 0-.38
    likeness of  .07-.30; .05-.10                parts of one photograph: .39-.71;      ALIKE .36
    backgrounds                                  drawings of one setting: .81-.90

A blur of 1 pixel (at 512) is found in 18 of the 25 photographs, two stops too bright in 16, too dark
in 17, a shift of 8 % in 5. Noise hardly disturbs: with a deviation of 8 in 255 no sharp photograph is
above .57, and none that is blurred by 3 pixels below .77.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

SIDE = 512  # pixels along the short side; smaller pictures stay as they are
SOFT, WHITE, DIM, EQUAL, ALIKE = 0.65, 0.25, 0.45, 0.34, 0.36
DARKEST = 0.04  # share of dark pixels from which on white ones are a white background
HASH = 16  # a hash has HASH^2 bits


@dataclass(frozen=True)
class Quality:
    """Measures of one picture; see the module for what is usual.

    softness: see `softness`. white, dark: the shares of the middle half (of either side) with a
    luminance above .97 and below .05. light: the middle's 95th percentile of luminance. outline,
    mirrored: difference hashes of it and its mirror image. border: see `border_colours`.
    """

    softness: float
    white: float
    dark: float
    light: float
    outline: np.ndarray
    mirrored: np.ndarray
    border: np.ndarray

    @property
    def is_blurred(self) -> bool:
        return self.softness > SOFT

    @property
    def is_overexposed(self) -> bool:
        """Much of the middle is white, and hardly anything dark: not a thing before white."""
        return self.white > WHITE and self.dark < DARKEST

    @property
    def is_underexposed(self) -> bool:
        return self.light < DIM


def quality_of(picture: Image.Image) -> Quality:
    """Measure an RGB picture, as training crops it."""
    factor = min(1.0, SIDE / min(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    seen = picture.resize((width, height), Image.Resampling.LANCZOS)
    grey = np.asarray(seen.convert("L"), dtype=np.float64) / 255
    middle = grey[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return Quality(
        softness=softness(grey),
        white=float((middle > 0.97).mean()),
        dark=float((middle < 0.05).mean()),
        light=float(np.percentile(middle, 95)),
        outline=difference_hash(seen),
        mirrored=difference_hash(ImageOps.mirror(seen)),
        border=border_colours(seen),
    )


def softness(grey: np.ndarray) -> float:
    """What the strongest edges keep of their slope when they are blurred once more, 0 to 1.

    Luminance [H, W] in 0..1. A sharp edge loses most of it, one that is blurred already little
    (the idea of Crete et al., "The blur effect", SPIE 6492, 2007). Of the steepest hundredth alone,
    so that a background out of focus does not count; after a slight blur, so that noise does not;
    in four directions of which the softest counts, so that a picture that moved is found. 0 for a
    picture without edges.
    """
    calm = _smoothed(grey, 0.7)
    before, after = _slopes(calm), _slopes(_smoothed(calm, 1.5))
    kept = [0.0]
    for slope, blurred in zip(before, after, strict=True):
        steepest = slope >= np.percentile(slope, 99) if slope.size else slope > 0
        if (total := slope[steepest].sum()) > 0:
            kept.append(float(blurred[steepest].sum() / total))
    return max(kept)


def distance(first: Quality, second: Quality) -> tuple[float, bool]:
    """Share of the difference hash's bits in which two pictures differ, 0 to 1; of random ones .5.

    The smaller one of that to the picture and that to its mirror image, and whether it is the
    latter.
    """
    apart = float((first.outline != second.outline).mean())
    mirrored = float((first.outline != second.mirrored).mean())
    return min(apart, mirrored), mirrored < apart


def difference_hash(picture: Image.Image) -> np.ndarray:
    """Whether luminance rises from each of HASH x (HASH + 1) places to the next: [HASH, HASH].

    Krawetz, "Kind of Like That", hackerfactor.com, 2013. (ImageHash has the same, and brings SciPy,
    which Lightning imports in every process wherever it is installed.)
    """
    small = picture.convert("L").resize((HASH + 1, HASH), Image.Resampling.LANCZOS)
    grey = np.asarray(small)
    rises: np.ndarray = grey[:, 1:] > grey[:, :-1]
    return rises


def border_colours(picture: Image.Image) -> np.ndarray:
    """Share of each of 8 x 8 x 8 colours in the outer eighth of an RGB picture: [512], sum 1."""
    small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), dtype=np.int64) // 32
    outer = np.ones((64, 64), dtype=bool)
    outer[8:-8, 8:-8] = False
    places = small[outer] @ np.array([64, 8, 1])
    return np.bincount(places, minlength=512) / len(places)


def background_likeness(borders: Sequence[np.ndarray]) -> float:
    """How alike the backgrounds of N >= 2 pictures are, 0 to 1.

    The lower quartile, over all pairs, of the colours that two borders have in common (histogram
    intersection: Swain and Ballard, "Color indexing", 1991).
    """
    pairs = itertools.combinations(borders, 2)
    return float(np.percentile([np.minimum(a, b).sum() for a, b in pairs], 25))


def _slopes(grey: np.ndarray) -> list[np.ndarray]:
    """Absolute differences of neighbours: across, down, and along both diagonals."""
    pairs = (
        (grey[:, 1:], grey[:, :-1]),
        (grey[1:], grey[:-1]),
        (grey[1:, 1:], grey[:-1, :-1]),
        (grey[1:, :-1], grey[:-1, 1:]),
    )
    return [np.abs(one - other) for one, other in pairs]


def _smoothed(grey: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur, the edge pixels repeated outwards."""
    reach = round(4 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        length = grey.shape[axis]
        wide = np.pad(grey, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], "edge")
        shifted = (np.take(wide, range(k, k + length), axis) for k in range(len(weights)))
        grey = sum(w * part for w, part in zip(weights, shifted, strict=True))
    return grey
