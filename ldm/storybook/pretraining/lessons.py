"""What the oracle is taught with: families of things that are easily taken for each other."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ldm.storybook import (
    ACCESSORIES,
    NOUNS,
    SETTINGS,
    Design,
    Scene,
    random_design,
    random_pose,
    random_scene,
    random_subject,
    subject_scene,
)
from ldm.storybook.accessories import MARKS
from ldm.storybook.drawings import DRAWINGS
from ldm.storybook.oracle import OTHER, VOCABULARY
from ldm.storybook.pretraining.pool import picture_array

VIEWS = 4  # pictures of each identity
FAMILY = 8  # identities of one class that differ in little
SHARD = 25  # families drawn by a process at a time
# What a design is made of: (class noun, trait, options). A subject's second tone is no trait.
TRAITS = tuple(
    (noun, trait, options)
    for noun in NOUNS
    for trait, options in DRAWINGS[noun].TRAITS.items()
    if trait != "second"
)
SIZES = max(len(DRAWINGS[noun].SIZES) for noun in NOUNS)
UNKNOWN = -100  # a label that is not there, as `cross_entropy` has it


@dataclass(frozen=True)
class Lesson:
    """pictures: N x 64 x 64 x 3, uint8. labels: attribute -> N. identity: N, which thing it is.

    traits: N x len(TRAITS), place of the option, UNKNOWN where the thing is of another class.
    sizes: N x SIZES in [0, 1]. marks: N, place in MARKS, UNKNOWN without one.
    """

    pictures: np.ndarray
    labels: dict[str, np.ndarray]
    identity: np.ndarray
    traits: np.ndarray
    sizes: np.ndarray
    marks: np.ndarray


def views(scene: Scene, rng: np.random.Generator, count: int) -> list[Scene]:
    """The same thing in other settings, poses and accessories."""
    shown = []
    for _ in range(count):
        setting = SETTINGS[rng.integers(len(SETTINGS))]
        bare = rng.random() < 0.4
        accessory = "none" if bare else ACCESSORIES[rng.integers(len(ACCESSORIES))]
        pose = random_pose(scene.noun, accessory, rng)
        seed = int(rng.integers(2**31))
        shown.append(replace(scene, setting=setting, accessory=accessory, seed=seed, **pose))
    return shown


def crossed(design: Design, other: Design, count: int, rng: np.random.Generator) -> Design:
    """`design` with `count` of its traits, and all sizes, taken from `other` of the same class."""
    differ = [t for t in design.traits if t != "second" and design[t] != other[t]]
    taken = {differ[i]: other[differ[i]] for i in rng.permutation(len(differ))[:count]}
    return Design(design.noun, {**design.traits, **taken}, other.sizes)


def draw_family(rng: np.random.Generator, noun: str | None = None) -> list[Scene]:
    """FAMILY things of one class: a subject, three of its colours and mark in another design (all
    of it, two traits, one trait), one of its design in other colours, and three of the world, the
    first two of one colour. What tells them apart is all that the embedding has to go by."""
    noun = noun or NOUNS[rng.integers(len(NOUNS))]
    first, *others = (random_subject(rng, noun) for _ in range(5))
    designs = [
        others[0].design,
        crossed(first.design, others[1].design, 2, rng),
        crossed(first.design, others[2].design, 1, rng),
    ]
    subjects = [first, *(replace(first, design=design) for design in designs)]
    subjects.append(replace(others[3], design=first.design))
    things = [subject_scene(s, SETTINGS[0], "none", rng) for s in subjects]
    worldly = random_scene(rng, noun=noun, held_out=None)
    alike = crossed(worldly.design, random_design(noun, rng), int(rng.integers(1, 4)), rng)
    things += [worldly, replace(worldly, design=alike)]
    return [*things, random_scene(rng, noun=noun, held_out=None)]


def _families(arguments: tuple[int, int, int]) -> tuple[np.ndarray, list[Scene]]:
    seed, number, count = arguments
    rng = np.random.default_rng([seed, number])
    things = [thing for _ in range(count) for thing in draw_family(rng)]
    scenes = [view for thing in things for view in views(thing, rng, VIEWS)]
    return np.stack([picture_array(scene) for scene in scenes]), scenes


def draw_lesson(families: int, seed: int) -> Lesson:
    """`families` x FAMILY identities x VIEWS pictures, family by family."""
    starts = range(0, families, SHARD)
    jobs = [(seed, n, min(SHARD, families - start)) for n, start in enumerate(starts)]
    pictures = np.empty((families * FAMILY * VIEWS, 64, 64, 3), dtype=np.uint8)
    scenes: list[Scene] = []
    with ProcessPoolExecutor(os.cpu_count()) as executor:
        for drawn, shown in executor.map(_families, jobs):
            pictures[len(scenes) : len(scenes) + len(shown)] = drawn
            scenes += shown
    return Lesson(pictures, _labels(scenes), np.arange(len(scenes)) // VIEWS, *_details(scenes))


def _labels(scenes: list[Scene]) -> dict[str, np.ndarray]:
    shown = {
        "class": [s.noun for s in scenes],
        "colour": [s.colour or OTHER for s in scenes],
        "setting": [s.setting for s in scenes],
        "accessory": [s.accessory for s in scenes],
    }
    return {
        name: np.array([VOCABULARY[name].index(word) for word in words])
        for name, words in shown.items()
    }


def _details(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Traits, sizes and marks of a lesson."""
    traits = np.full((len(scenes), len(TRAITS)), UNKNOWN)
    sizes = np.zeros((len(scenes), SIZES), dtype=np.float32)
    for i, scene in enumerate(scenes):
        for k, (noun, trait, options) in enumerate(TRAITS):
            if noun == scene.noun:
                traits[i, k] = options.index(scene.design[trait])
        sizes[i, : len(scene.design.sizes)] = list(scene.design.sizes.values())
    marks = [UNKNOWN if s.mark is None else tuple(MARKS).index(s.mark) for s in scenes]
    return traits, sizes, np.array(marks)
