"""The threshold of the oracle's `accepts`, set on renders alone, and how often it is right."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image

from ldm.data.images import to_picture
from ldm.evaluation.metrics import Score, mean, share
from ldm.models.base import BaseModel
from ldm.sampling.generate import generate
from ldm.storybook import (
    ACCESSORIES,
    NOUNS,
    SETTINGS,
    Scene,
    Subject,
    compose,
    heldout_scenes,
    random_scene,
    random_subject,
    subject_scene,
    training_scenes,
)
from ldm.storybook.oracle import StorybookOracle, cosine_to_mean
from ldm.storybook.pretraining.oracle import decoded
from ldm.storybook.pretraining.pool import picture_array
from ldm.storybook.pretraining.vae import to_unit
from ldm.storybook.subjects import HELDOUT_PICTURES, TRAINING_PICTURES

SHOWN = 8  # pictures of each kind beside a subject's references
RIVALS = (
    "world objects",  # of its class
    "other subjects",  # of its class, drawn at random
    "same colours",  # its colours and mark on another design
    "same design",  # its design in other colours, with another mark
)
# What a subject is recognised by: held-out pictures; without any, training pictures.
REFERENCES = {
    "": slice(TRAINING_PICTURES, TRAINING_PICTURES + HELDOUT_PICTURES),
    ", by training pictures": slice(0, TRAINING_PICTURES),
}
DECODED = "own, through the VAE"  # the most that a model with this VAE can reach
ACCEPTED = 0.008  # of each kind of rival that binds the threshold; 1 % with room for chance


@dataclass(frozen=True)
class Gallery:
    """Embeddings of S random subjects, the classes of NOUNS in turn.

    references: S x 25 x D, training pictures first. shown: "own", DECODED or kind of rival ->
    S x SHOWN x D.
    """

    references: np.ndarray
    shown: dict[str, np.ndarray]

    def cosines(self, kind: str, by: slice) -> np.ndarray:
        """Of each shown picture to the mean direction of its subject's references: S x SHOWN."""
        return np.stack(
            [
                cosine_to_mean(embeddings, references[by])
                for embeddings, references in zip(self.shown[kind], self.references, strict=True)
            ]
        )


def _view(subject: Subject, rng: np.random.Generator) -> Scene:
    """The subject anywhere, with an accessory more often than not."""
    accessory = ACCESSORIES[rng.integers(len(ACCESSORIES))] if rng.random() < 0.6 else "none"
    return subject_scene(subject, SETTINGS[rng.integers(len(SETTINGS))], accessory, rng)


def draw_shown(subject: Subject, rng: np.random.Generator) -> dict[str, list[Scene]]:
    """SHOWN scenes of the subject ("own") and of each kind of rival, every one another thing."""

    def other() -> Subject:
        return random_subject(rng, subject.noun)

    count = range(SHOWN)
    return {
        "own": [_view(subject, rng) for _ in count],
        "world objects": [random_scene(rng, noun=subject.noun, held_out=None) for _ in count],
        "other subjects": [_view(other(), rng) for _ in count],
        "same colours": [_view(replace(subject, design=other().design), rng) for _ in count],
        "same design": [_view(replace(other(), design=subject.design), rng) for _ in count],
    }


def _pictures(arguments: tuple[int, int]) -> np.ndarray:
    """One random subject's references, then what is shown beside them."""
    seed, number = arguments
    rng = np.random.default_rng([seed, number])
    subject = random_subject(rng, NOUNS[number % len(NOUNS)])
    scenes = [scene for scene, _ in training_scenes(subject) + heldout_scenes(subject)]
    for shown in draw_shown(subject, rng).values():
        scenes += shown
    return np.stack([picture_array(scene) for scene in scenes])


def draw_gallery(
    oracle: StorybookOracle, subjects: int, seed: int, vae: AutoencoderKL | None = None
) -> Gallery:
    """What the oracle sees of `subjects` freshly drawn subjects (as many of each class) and of
    what may be taken for them; with `vae` also of their own pictures after it, DECODED."""
    first = TRAINING_PICTURES + HELDOUT_PICTURES
    own = slice(first, first + SHOWN)
    jobs = [(seed, number) for number in range(subjects)]
    seen, softened = [], []
    with ProcessPoolExecutor(os.cpu_count()) as executor:
        for pictures in executor.map(_pictures, jobs, chunksize=8):
            seen.append(embed(oracle, [Image.fromarray(picture) for picture in pictures]))
            if vae is not None:
                soft = decoded(vae, to_unit(pictures[own]))
                softened.append(embed(oracle, [to_picture(picture) for picture in soft]))
    places = first + SHOWN * np.arange(1 + len(RIVALS))
    references, *parts = np.split(np.stack(seen), places, axis=1)
    shown = dict(zip(("own", *RIVALS), parts, strict=True))
    return Gallery(references, shown | ({DECODED: np.stack(softened)} if softened else {}))


def embed(oracle: StorybookOracle, pictures: list[Image.Image]) -> np.ndarray:
    """Unit rows N x D."""
    return np.stack([reading.embedding for reading in oracle.read(pictures)])


def find_threshold(gallery: Gallery, rivals: list[str]) -> float:
    """The least cosine at which at most ACCEPTED of each of `rivals` are taken for the subject."""
    return max(
        float(np.quantile(gallery.cosines(kind, by), 1 - ACCEPTED))
        for kind in rivals
        for by in REFERENCES.values()
    )


def accepted(gallery: Gallery, threshold: float) -> dict[str, Score]:
    """Share of pictures taken for the subject: "own" (the more the better) and each rival."""
    return {
        f"{kind}{how}": share((gallery.cosines(kind, by) >= threshold).ravel().tolist())
        for how, by in REFERENCES.items()
        for kind in gallery.shown
    }


def accepted_of_base(
    base: BaseModel, oracle: StorybookOracle, gallery: Gallery, images: int, seed: int
) -> dict[str, Score]:
    """Share of the base's "a drawing of a {class}" that is taken for a subject of that class.

    images: of each class. Each picture counts with its share of the gallery's subjects.
    """
    shares: dict[str, list[float]] = {how: [] for how in REFERENCES}
    for number, noun in enumerate(NOUNS):
        seeds = range(seed + number * images, seed + (number + 1) * images)
        drawn = generate(base, [compose(noun)] * images, seeds, batch=32)
        embeddings = embed(oracle, list(drawn))
        for how, by in REFERENCES.items():
            taken = [
                oracle.accepts(embeddings, references[by])
                for references in gallery.references[number :: len(NOUNS)]
            ]
            shares[how] += np.mean(taken, axis=0).tolist()
    return {f"base's class images{how}": mean(values) for how, values in shares.items()}
