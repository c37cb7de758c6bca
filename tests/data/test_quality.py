"""Measures of pictures: what was spoilt is found, what is as it should be is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ldm.data.images import find_pictures, load_picture
from ldm.data.quality import ALIKE, EQUAL, background_likeness, distance, quality_of
from ldm.storybook import render
from ldm.storybook.folder import find_subject
from ldm.storybook.subjects import heldout_scenes

ROOT = Path(__file__).parents[2]
DRAWINGS = [
    path
    for name in ("dog_pepper", "robot_volt")
    for path in find_pictures(ROOT / "data/subjects" / name)
]
BLUR = ImageFilter.GaussianBlur(1.5)


def textured(seed: int = 0, side: int = 256) -> Image.Image:
    """Sharp-edged patches of all sizes, as in a photograph."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), (90, 110, 80))
    for _ in range(150):
        x, y = rng.integers(0, side, 2).tolist()
        w, h = rng.integers(3, 60, 2).tolist()
        picture.paste(tuple(rng.integers(20, 235, 3).tolist()), (x, y, x + w, y + h))
    return picture


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_drawings_as_they_are_and_spoilt(path: Path) -> None:
    drawing = load_picture(path)
    quality = quality_of(drawing)
    assert not (quality.is_blurred or quality.is_overexposed or quality.is_underexposed)
    assert quality_of(drawing.filter(BLUR)).is_blurred
    assert quality_of(ImageEnhance.Brightness(drawing).enhance(0.25)).is_underexposed


def test_blur_is_of_the_picture_and_not_of_its_size() -> None:
    picture = textured(side=512)
    large = picture.resize((2048, 2048), Image.Resampling.BICUBIC)
    assert not quality_of(picture).is_blurred
    assert not quality_of(large).is_blurred, "soft at its own size, sharp at 512"
    assert quality_of(large.filter(ImageFilter.GaussianBlur(8))).is_blurred


def test_a_background_out_of_focus_does_not_count_and_motion_does() -> None:
    picture = textured()
    soft = picture.filter(ImageFilter.GaussianBlur(4))
    soft.paste(picture.crop((90, 90, 166, 166)), (90, 90))
    assert not quality_of(soft).is_blurred
    moved = np.mean([np.roll(np.asarray(picture, float), shift, axis=1) for shift in range(9)], 0)
    assert quality_of(Image.fromarray(moved.round().astype(np.uint8))).is_blurred


def test_noise_neither_sharpens_nor_blurs() -> None:
    def noisy(picture: Image.Image) -> Image.Image:
        noise = np.random.default_rng(0).normal(0, 6, (*picture.size, 3))
        return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))

    assert not quality_of(noisy(textured())).is_blurred
    assert quality_of(noisy(textured().filter(ImageFilter.GaussianBlur(3)))).is_blurred


def test_white_background_is_not_overexposure() -> None:
    thing = Image.new("RGB", (128, 128), "white")
    thing.paste(textured(side=40), (44, 44))
    thing.paste("black", (50, 50, 70, 60))
    assert not quality_of(thing).is_overexposed
    bright = textured().point(lambda value: min(255, value * 3 + 60))
    assert quality_of(bright).is_overexposed


def test_plain_picture_has_no_edges() -> None:
    assert quality_of(Image.new("RGB", (8, 8), "grey")).softness == 0
    assert quality_of(Image.new("RGB", (1, 1), "grey")).softness == 0


def test_nearly_equal_pictures() -> None:
    picture, other = textured(), textured(seed=1)
    quality = quality_of(picture)
    relit = ImageEnhance.Brightness(picture).enhance(1.2)
    shifted = picture.crop((6, 6, 256, 256))
    for alike in (picture, relit, shifted, picture.resize((100, 100))):
        apart, mirrored = distance(quality_of(alike), quality)
        assert apart < EQUAL and not mirrored
    apart, mirrored = distance(quality_of(ImageOps.mirror(picture)), quality)
    assert apart < EQUAL and mirrored
    assert distance(quality_of(other), quality)[0] > EQUAL


def test_drawings_of_a_subject_are_not_taken_for_equal() -> None:
    for name in ("dog_pepper", "robot_volt"):
        qualities = [quality_of(load_picture(p)) for p in DRAWINGS if p.parent.name == name]
        pairs = [(a, b) for i, a in enumerate(qualities) for b in qualities[:i]]
        assert min(distance(a, b)[0] for a, b in pairs) > EQUAL


def test_one_background_is_seen() -> None:
    from dataclasses import replace

    scenes = [scene for scene, _ in heldout_scenes(find_subject("dog_pepper"))][:6]
    one = [quality_of(render(replace(s, setting="in the kitchen"))).border for s in scenes]
    own = [quality_of(render(scene)).border for scene in scenes]
    assert background_likeness(own) < ALIKE < background_likeness(one)
