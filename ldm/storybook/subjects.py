"""Subjects: one particular object each, in colours and with a mark that the world never draws."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ldm.storybook.accessories import MARKS
from ldm.storybook.captions import compose
from ldm.storybook.parts import Design
from ldm.storybook.pen import RGB, clamp, distance
from ldm.storybook.world import (
    ACCESSORIES,
    COLOURS,
    NOUNS,
    SETTINGS,
    Scene,
    random_design,
    random_pose,
)

PALETTE_DISTANCE = (
    60.0  # least RGB distance of a subject's body and second tone from every world colour
)
TRAINING_PICTURES = 5
HELDOUT_PICTURES = 20


@dataclass(frozen=True)
class Subject:
    """One object: always this design, these colours and this mark."""

    name: str
    noun: str
    design: Design
    body: RGB
    second: RGB
    mark: str
    mark_rgb: RGB


def _shipped(
    name: str,
    traits: str,
    sizes: tuple[float, ...],
    body: RGB,
    second: RGB,
    mark: str,
    mark_rgb: RGB,
) -> Subject:
    """A subject from its traits written "key=value key=value"; sizes in the order of the class."""
    noun = name.split("_")[0]
    reference = random_design(noun, np.random.default_rng(0))
    chosen = {**dict(pair.split("=") for pair in traits.split()), "second": "darker"}
    if chosen.keys() != reference.traits.keys() or len(sizes) != len(reference.sizes):
        raise ValueError(
            f"subject {name}: give the traits {sorted(reference.traits)} "
            f"and {len(reference.sizes)} sizes"
        )
    return Subject(
        name,
        noun,
        Design(noun, chosen, dict(zip(reference.sizes, sizes, strict=True))),
        body,
        second,
        mark,
        mark_rgb,
    )


_ALL = (
    _shipped(
        "robot_volt",
        "head=dome antenna=two eyes=round mouth=grille body=funnel "
        "arms=claw base=track accent=arms+base",
        (0.7, 0.8, 0.8),
        (0, 158, 150),
        (226, 40, 140),
        "bolt",
        (255, 236, 80),
    ),
    _shipped(
        "robot_mint",
        "head=keystone antenna=ball eyes=one mouth=line body=skirt "
        "arms=raised base=spring accent=head",
        (0.6, 0.6, 0.5),
        (150, 232, 196),
        (128, 8, 72),
        "heart",
        (230, 40, 70),
    ),
    _shipped(
        "robot_luna",
        "head=round antenna=ears eyes=visor mouth=none body=egg arms=ball base=wheels accent=panel",
        (0.8, 0.9, 0.4),
        (178, 166, 240),
        (28, 38, 116),
        "crescent",
        (255, 240, 150),
    ),
    _shipped(
        "dog_pepper",
        "ears=floppy muzzle=broad tail=up legs=stout accent=patch+socks+tail",
        (0.7, 0.9, 0.9),
        (64, 196, 204),
        (110, 16, 60),
        "star",
        (255, 240, 110),
    ),
    _shipped(
        "dog_biscuit",
        "ears=pointed muzzle=long tail=plume legs=long accent=ears+tail",
        (0.4, 0.5, 0.7),
        (196, 214, 74),
        (20, 92, 100),
        "heart",
        (224, 30, 100),
    ),
    _shipped(
        "dog_cocoa",
        "ears=long muzzle=short tail=curl legs=short accent=socks+muzzle",
        (0.9, 1.0, 1.0),
        (255, 186, 142),
        (96, 28, 96),
        "ring",
        (0, 130, 140),
    ),
    _shipped(
        "cat_saffron",
        "pose=sit ears=tall tail=hook face=wide eyes=round accent=chest+paws+ears",
        (0.8, 0.9, 0.8),
        (190, 150, 18),
        (10, 84, 98),
        "diamond",
        (130, 250, 230),
    ),
    _shipped(
        "cat_plum",
        "pose=lie ears=small tail=fat face=fluffy eyes=almond accent=ears+tail",
        (0.9, 0.8, 0.6),
        (112, 16, 72),
        (134, 216, 190),
        "clover",
        (160, 250, 120),
    ),
    _shipped(
        "car_comet",
        "body=beetle wheels=white roof=none lamp=round accent=roof",
        (0.9, 0.8, 1.0),
        (134, 200, 246),
        (206, 30, 126),
        "star",
        (255, 250, 200),
    ),
    _shipped(
        "car_rally",
        "body=van wheels=spokes roof=rack lamp=square accent=ends",
        (0.9, 0.6, 0.9),
        (134, 142, 30),
        (250, 195, 150),
        "cross",
        (250, 250, 240),
    ),
    _shipped(
        "house_gable",
        "roof=gable windows=square door=arch place=left chimney=right accent=roof+door",
        (0.8, 0.7, 0.6),
        (112, 214, 214),
        (140, 12, 84),
        "heart",
        (255, 200, 210),
    ),
    _shipped(
        "cup_breakfast",
        "shape=mug handle=round saucer=plate steam=none accent=rim+handle",
        (0.9, 0.7, 0.9),
        (255, 120, 108),
        (20, 78, 96),
        "burst",
        (255, 246, 150),
    ),
    _shipped(
        "fish_coral",
        "body=round tail=fan dorsal=sail lips=pout accent=fins+tail",
        (0.8, 0.8, 0.9),
        (232, 36, 136),
        (150, 236, 120),
        "crescent",
        (255, 250, 220),
    ),
    _shipped(
        "tree_frost",
        "crown=cloud trunk=forked fruit=none ground=roots accent=skirt",
        (0.6, 0.6, 0.5),
        (76, 104, 126),
        (176, 236, 232),
        "arrow",
        (255, 190, 60),
    ),
)
SUBJECTS: dict[str, Subject] = {subject.name: subject for subject in _ALL}


def _generator(subject: Subject, purpose: str) -> np.random.Generator:
    """The same numbers for the same subject on every machine."""
    digest = blake2b(f"{subject}|{purpose}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _random_colour(rng: np.random.Generator) -> RGB:
    """A colour at least PALETTE_DISTANCE from every world colour."""
    while True:
        hue, saturation, value = (
            rng.random(),
            0.35 + 0.65 * rng.random(),
            0.45 + 0.55 * rng.random(),
        )
        rgb = clamp(*(255 * c for c in hsv_to_rgb(hue, saturation, value)))
        if all(distance(rgb, known) >= PALETTE_DISTANCE for known in COLOURS.values()):
            return rgb


def random_subject(rng: np.random.Generator, noun: str | None = None) -> Subject:
    """Draw a new subject, of class `noun` if given; its name ends in a random number."""
    noun = noun or NOUNS[int(rng.integers(len(NOUNS)))]
    design = random_design(noun, rng)
    while noun == "tree" and (design.accented("fruit") or design["fruit"] != "none"):
        design = random_design(noun, rng)  # fruit would hide the mark
    body = second = mark_rgb = _random_colour(rng)
    while distance(body, second) < 130:
        second = _random_colour(rng)
    while min(distance(mark_rgb, body), distance(mark_rgb, second)) < 130:
        mark_rgb = clamp(*rng.integers(0, 256, 3).tolist())
    mark = tuple(MARKS)[int(rng.integers(len(MARKS)))]
    return Subject(
        f"{noun}_{int(rng.integers(10**8)):08d}", noun, design, body, second, mark, mark_rgb
    )


def subject_scene(
    subject: Subject, setting: str, accessory: str, rng: np.random.Generator
) -> Scene:
    """The subject in a setting with an accessory ("none" for none), pose drawn at random."""
    return Scene(
        noun=subject.noun,
        colour="",
        setting=setting,
        pattern="plain",
        accessory=accessory,
        design=subject.design,
        **random_pose(subject.noun, accessory, rng),
        seed=int(rng.integers(2**31)),
        body_rgb=subject.body,
        second_rgb=subject.second,
        mark=subject.mark,
        mark_rgb=subject.mark_rgb,
    )


def subject_caption(scene: Scene) -> str:
    """The full caption of a subject's scene: "a drawing of [V] robot on the beach"."""
    accessory = "" if scene.accessory == "none" else scene.accessory
    return compose(scene.noun, setting=scene.setting, accessory=accessory, identifier="[V]")


def _settings(subject: Subject) -> list[str]:
    """All settings in the subject's own order; the first ones are for training."""
    return [SETTINGS[i] for i in _generator(subject, "settings").permutation(len(SETTINGS))]


def _captioned(scenes: list[Scene]) -> list[tuple[Scene, str]]:
    return [(scene, subject_caption(scene)) for scene in scenes]


def training_scenes(subject: Subject) -> list[tuple[Scene, str]]:
    """Five (scene, caption) pairs in five settings, without accessories; always the same."""
    rng = _generator(subject, "training")
    return _captioned(
        [
            subject_scene(subject, setting, "none", rng)
            for setting in _settings(subject)[:TRAINING_PICTURES]
        ]
    )


def heldout_scenes(subject: Subject) -> list[tuple[Scene, str]]:
    """Twenty (scene, caption) pairs in the other settings, always the same.

    The first half is without accessories; the second half wears or holds each one twice.
    """
    rng, others = _generator(subject, "heldout"), _settings(subject)[TRAINING_PICTURES:]
    scenes = []
    for k in range(HELDOUT_PICTURES):
        accessory = (
            "none"
            if k < HELDOUT_PICTURES // 2
            else ACCESSORIES[1 + (k + k // 5) % (len(ACCESSORIES) - 1)]
        )
        scenes.append(subject_scene(subject, others[k % len(others)], accessory, rng))
    return _captioned(scenes)
