"""The oracle, from renders, from what the VAE makes of them, and from spoilt pictures."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ldm.storybook import (
    ACCESSORIES,
    COLOURS,
    NOUNS,
    SETTINGS,
    Scene,
    random_design,
    random_pose,
    random_scene,
    random_subject,
    subject_scene,
)
from ldm.storybook.oracle import OTHER, VOCABULARY, StorybookOracle
from ldm.storybook.pretraining.loop import Loop, LoopSettings
from ldm.storybook.pretraining.pool import picture_array
from ldm.storybook.pretraining.vae import recolour, to_unit

VIEWS = 4  # pictures of each identity
FAMILY = 3  # identities that differ in one thing: the design, or the colouring
TEMPERATURE = 0.1
SPOILT_SHARE = 0.2


@dataclass(frozen=True)
class Lesson:
    """pictures: N x 64 x 64 x 3, uint8. labels: attribute -> N. identity: N, which thing it is."""

    pictures: np.ndarray
    labels: dict[str, np.ndarray]
    identity: np.ndarray


def _views(scene: Scene, rng: np.random.Generator, count: int) -> list[Scene]:
    """The same thing in other settings, poses and accessories."""
    views = []
    for _ in range(count):
        setting = SETTINGS[rng.integers(len(SETTINGS))]
        bare = rng.random() < 0.4
        accessory = "none" if bare else ACCESSORIES[rng.integers(len(ACCESSORIES))]
        pose = random_pose(scene.noun, accessory, rng)
        seed = int(rng.integers(2**31))
        views.append(replace(scene, setting=setting, accessory=accessory, seed=seed, **pose))
    return views


def draw_family(rng: np.random.Generator, noun: str | None = None) -> list[Scene]:
    """FAMILY things of one class: a world object in other designs, or a subject in other
    designs or colourings. What tells them apart is all that the embedding has to go by."""
    noun = noun or NOUNS[rng.integers(len(NOUNS))]
    if rng.random() < 0.5:
        colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
        plain = random_scene(rng, noun=noun, colour=colour, pattern="plain", held_out=None)
        return [replace(plain, design=random_design(noun, rng)) for _ in range(FAMILY)]
    first = random_subject(rng, noun)
    others = [random_subject(rng, noun) for _ in range(FAMILY - 1)]
    if rng.random() < 0.5:
        others = [replace(first, design=other.design) for other in others]
    else:
        others = [replace(other, design=first.design) for other in others]
    return [subject_scene(s, SETTINGS[0], "none", rng) for s in (first, *others)]


def _families(arguments: tuple[int, int, int]) -> tuple[np.ndarray, list[Scene]]:
    seed, number, count = arguments
    rng = np.random.default_rng([seed, number])
    things = [thing for _ in range(count) for thing in draw_family(rng)]
    scenes = [view for thing in things for view in _views(thing, rng, VIEWS)]
    return np.stack([picture_array(scene) for scene in scenes]), scenes


def draw_lesson(families: int, seed: int) -> Lesson:
    """`families` x FAMILY identities x VIEWS pictures, family by family."""
    jobs = [(seed, n, min(50, families - start)) for n, start in enumerate(range(0, families, 50))]
    with ProcessPoolExecutor(os.cpu_count()) as executor:
        parts = list(executor.map(_families, jobs))
    scenes = [scene for _, drawn in parts for scene in drawn]
    shown = {
        "class": [s.noun for s in scenes],
        "colour": [s.colour or OTHER for s in scenes],
        "setting": [s.setting for s in scenes],
        "accessory": [s.accessory for s in scenes],
    }
    labels = {
        name: np.array([VOCABULARY[name].index(word) for word in words])
        for name, words in shown.items()
    }
    return Lesson(
        np.concatenate([pictures for pictures, _ in parts]),
        labels,
        np.arange(len(scenes)) // VIEWS,
    )


def spoil(pictures: Tensor, rng: np.random.Generator, kind: int | None = None) -> Tensor:
    """Make each picture none of the world's: a blend, noise, smeared, cut up, or without its thing.

    NCHW in [-1, 1], like the result. kind: place in SPOILER_NAMES; None: any.
    """
    others = pictures[torch.from_numpy(rng.permutation(len(pictures)))]
    spoilt = pictures.clone()
    for i, drawn in enumerate(rng.integers(len(_SPOILERS), size=len(pictures))):
        spoilt[i] = _SPOILERS[drawn if kind is None else kind](
            pictures[i : i + 1], others[i : i + 1], rng
        )[0]
    return spoilt.clamp(-1, 1)


def _blend(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    share = rng.uniform(0.4, 0.6)
    return share * x + (1 - share) * other


def _noise(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    grain = 2 ** int(rng.integers(4))  # from single pixels to blobs of eight
    noise = torch.from_numpy(rng.standard_normal((1, 3, 64 // grain, 64 // grain))).float()
    noise = functional.interpolate(noise, size=64, mode="bilinear", align_corners=False)
    share = rng.uniform(0.0, 0.35)
    return share * x + (1 - share) * noise * rng.uniform(0.5, 1.0)


def _smear(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Only a few blurred patches of colour are left, as in a model that is half trained."""
    size = int(rng.integers(4, 8))
    small = functional.interpolate(x, size=size, mode="area")
    return functional.interpolate(small, size=64, mode="bicubic", align_corners=False)


def _half(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of one picture beside half of another."""
    axis = int(rng.integers(2, 4))
    first, _ = x.chunk(2, dim=axis)
    _, second = other.chunk(2, dim=axis)
    return torch.cat([first, second], dim=axis)


def _shuffle(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Sixteen tiles in another order."""
    tiles = rearrange(x, "1 c (i h) (j w) -> (i j) c h w", i=4, j=4)
    tiles = tiles[torch.from_numpy(rng.permutation(16))]
    return rearrange(tiles, "(i j) c h w -> 1 c (i h) (j w)", i=4, j=4)


def _erase(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """The middle, where the thing is, taken from elsewhere or blurred away."""
    spoilt, edge = x.clone(), int(rng.integers(8, 14))
    inside = (..., slice(edge, 64 - edge), slice(edge, 64 - edge))
    source = other if rng.random() < 0.5 else _smear(x, other, rng)
    spoilt[inside] = source.roll(int(rng.integers(16, 48)), dims=3)[inside]
    return spoilt


def _fold(x: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """Warped by strong waves."""
    line = torch.linspace(-1, 1, 64)
    y, z = torch.meshgrid(line, line, indexing="ij")
    phase, turns = rng.uniform(0, 6.28), rng.uniform(4, 9)
    grid = torch.stack([z + 0.3 * (turns * y + phase).sin(), y + 0.3 * (turns * z).cos()], -1)
    return functional.grid_sample(x, grid[None], padding_mode="reflection", align_corners=False)


_SPOILERS = (_blend, _noise, _smear, _half, _shuffle, _erase, _fold)
SPOILER_NAMES = ("blend", "noise", "smear", "two halves", "shuffled", "thing erased", "warped")


def augment(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Small faults of generated pictures that must not matter: softness, grain, contrast."""
    n = len(pictures)
    soft = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.from_numpy(rng.uniform(0, 0.7, (n, 1, 1, 1)) * (rng.random((n, 1, 1, 1)) < 0.5))
    grain = torch.from_numpy(rng.uniform(0, 0.1, (n, 1, 1, 1)))
    gain = torch.from_numpy(rng.uniform(0.92, 1.1, (n, 1, 1, 1)))
    noise = torch.from_numpy(rng.standard_normal(tuple(pictures.shape), dtype=np.float32))
    mixed = pictures * (1 - share).float() + soft * share.float()
    return (mixed * gain.float() + noise * grain.float()).clamp(-1, 1)


def contrast(embedding: Tensor, identity: Tensor) -> Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, equation 2) over unit vectors N x D."""
    similar = embedding @ embedding.T / TEMPERATURE
    similar = similar.masked_fill(torch.eye(len(embedding), dtype=torch.bool), -1e4)
    same = (identity[:, None] == identity[None]).float().fill_diagonal_(0)
    log_share = similar - similar.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1).clamp(min=1))[same.sum(1) > 0].mean()


def train_oracle(
    oracle: StorybookOracle,
    lesson: Lesson,
    half_trained: np.ndarray,
    settings: LoopSettings,
    families: int,
    seed: int,
    state: Path,
) -> StorybookOracle:
    """Train on `families` families a step; `half_trained` pictures (N x 64 x 64 x 3) are "none"."""
    loop = Loop(oracle, settings, state)
    per_family = FAMILY * VIEWS
    available = len(lesson.pictures) // per_family

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(available, size=families, replace=False)
        rows = (chosen[:, None] * per_family + np.arange(per_family)).ravel()
        good = to_unit(lesson.pictures[rows])
        count = int(SPOILT_SHARE * len(rows))
        bad = spoil(good[torch.from_numpy(rng.permutation(len(rows))[:count])], rng)
        if len(half_trained):
            early = to_unit(half_trained[rng.integers(len(half_trained), size=count)])
            early = recolour(early.flip(3) if rng.random() < 0.5 else early, rng)
            bad = torch.cat([bad, early])  # few pictures, shown in many ways
        out = oracle(torch.cat([augment(good, rng), augment(bad, rng)]))
        n = len(good)
        losses = {
            name: functional.cross_entropy(out[name][:n], torch.from_numpy(labels[rows]))
            for name, labels in lesson.labels.items()
        }
        is_none = (torch.arange(n + len(bad)) >= n).float()
        losses["none"] = functional.binary_cross_entropy_with_logits(out["none"], is_none)
        losses["design"] = contrast(out["embedding"][:n], torch.from_numpy(lesson.identity[rows]))
        return torch.stack(list(losses.values())).sum(), {k: v.item() for k, v in losses.items()}

    oracle.train()
    loop.run(loss_at)
    loop.load_average()
    return oracle.eval().requires_grad_(False)
