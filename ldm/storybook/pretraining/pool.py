"""A pool of rendered pictures: drawn once by all processor cores, then read by every stage."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.storybook import (
    ACCESSORIES,
    SETTINGS,
    Scene,
    caption,
    random_scene,
    random_subject,
    render,
    subject_scene,
)

log = logging.getLogger(__name__)
SHARD = 2000


@dataclass(frozen=True)
class Pool:
    """pictures: N x 64 x 64 x 3, uint8. scenes: what each shows. captions: N x variants, text."""

    pictures: np.ndarray
    scenes: list[Scene]
    captions: list[list[str]]


def picture_array(scene: Scene) -> np.ndarray:
    """The rendered scene as 64 x 64 x 3, uint8."""
    return np.asarray(render(scene), dtype=np.uint8)


def draw_scene(rng: np.random.Generator, subject_share: float, held_out: bool | None) -> Scene:
    """A scene of the world or, with probability `subject_share`, one of a freshly drawn subject."""
    if rng.random() >= subject_share:
        return random_scene(rng, held_out=held_out)
    setting = SETTINGS[rng.integers(len(SETTINGS))]
    accessory = ACCESSORIES[rng.integers(len(ACCESSORIES))] if rng.random() < 0.5 else "none"
    return subject_scene(random_subject(rng), setting, accessory, rng)


def _shard(arguments: tuple[int, int, int, float, int]) -> tuple[np.ndarray, list, list]:
    seed, number, count, subject_share, variants = arguments
    rng = np.random.default_rng([seed, number])
    scenes = [draw_scene(rng, subject_share, held_out=False) for _ in range(count)]
    captions = [[caption(scene, rng) for _ in range(variants)] for scene in scenes]
    return np.stack([picture_array(scene) for scene in scenes]), scenes, captions


def draw_pool(count: int, seed: int, subject_share: float = 0.0, variants: int = 4) -> Pool:
    """Draw `count` pictures of training combinations; the same pool for the same arguments.

    `subject_share` of them show random subjects (colours and marks outside the world), which the
    VAE and the oracle must know but the captioned world must not contain.
    """
    jobs = [
        (seed, number, min(SHARD, count - start), subject_share, variants)
        for number, start in enumerate(range(0, count, SHARD))
    ]
    pictures = np.empty((count, 64, 64, 3), dtype=np.uint8)
    scenes: list[Scene] = []
    captions: list[list[str]] = []
    with ProcessPoolExecutor(os.cpu_count()) as executor:
        for drawn, shown, said in executor.map(_shard, jobs):
            pictures[len(scenes) : len(scenes) + len(drawn)] = drawn
            scenes += shown
            captions += said
            if len(scenes) % (10 * SHARD) == 0:
                log.info("drew %d of %d pictures", len(scenes), count)
    return Pool(pictures, scenes, captions)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` beside its place, then rename, so that it is never half there."""
    staging = path.with_suffix(".staging.npy")
    np.save(staging, array)
    staging.replace(path)
