"""The oracle, from renders, from what the VAE makes of them, and from spoilt pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ldm.models.precision import autocast, native_precision
from ldm.storybook import NOUNS
from ldm.storybook.accessories import MARKS
from ldm.storybook.oracle import StorybookOracle
from ldm.storybook.pretraining.lessons import FAMILY, SIZES, TRAITS, UNKNOWN, VIEWS, Lesson
from ldm.storybook.pretraining.loop import Loop, LoopSettings
from ldm.storybook.pretraining.vae import recolour, to_unit

CPU = torch.device("cpu")
TEMPERATURE = 0.07
SPOILT_SHARE = 0.15
REFUSED = 0.003  # of good renders
DECODED_SHARE = 0.125  # pictures that went through the VAE, as all that a model draws do


def spoil(pictures: Tensor, rng: np.random.Generator, kind: int | None = None) -> Tensor:
    """Make each picture none of the world's: a blend, noise, smeared, cut up, or without its thing.

    NCHW in [-1, 1], like the result. kind: place in SPOILER_NAMES; None: any.
    """
    others, order = torch.empty_like(pictures), torch.from_numpy(rng.permutation(len(pictures)))
    others[order] = pictures[order.roll(1)]  # in a circle, so that none meets itself
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


@torch.no_grad()
def settle_none(oracle: StorybookOracle, pictures: np.ndarray) -> None:
    """Shift "none" so that REFUSED of the good `pictures` (N x 64 x 64 x 3, uint8) count as none.

    Training makes it as sure of renders as it can; a little less catches many more bad pictures.
    """
    logits = torch.cat([oracle(to_unit(part))["none"] for part in np.array_split(pictures, 16)])
    oracle.none.bias.sub_(logits.quantile(1 - REFUSED))


@torch.no_grad()
def decoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """What comes back from the VAE: NCHW in [-1, 1], like `pictures`."""
    with autocast(CPU, native_precision("cpu")):
        return vae.decode(vae.encode(pictures).latent_dist.sample()).sample.float().clamp(-1, 1)


def contrast(embedding: Tensor, identity: Tensor) -> Tensor:
    """Supervised contrastive loss (arXiv 2004.11362, equation 2) over unit vectors N x D."""
    similar = embedding @ embedding.T / TEMPERATURE
    similar = similar.masked_fill(torch.eye(len(embedding), dtype=torch.bool), -1e4)
    same = (identity[:, None] == identity[None]).float().fill_diagonal_(0)
    log_share = similar - similar.logsumexp(1, keepdim=True)
    return -((log_share * same).sum(1) / same.sum(1).clamp(min=1))[same.sum(1) > 0].mean()


class Details(nn.Module):
    """Reads the design off what the oracle recognises by, so that it is in there; not shipped.

    An embedding that is taught by comparing alone forgets the traits that few pairs differ in.
    """

    def __init__(self, features: int):
        super().__init__()
        self.traits = nn.Linear(features, sum(len(options) for *_, options in TRAITS))
        self.sizes = nn.Linear(features, len(NOUNS) * SIZES)
        self.mark = nn.Linear(features, len(MARKS))

    def losses(self, features: Tensor, lesson: Lesson, rows: np.ndarray) -> dict[str, Tensor]:
        """Mean losses over the pictures `rows` of the lesson; features: len(rows) x C."""
        wanted = torch.from_numpy(lesson.traits[rows])
        logits = self.traits(features).float().split([len(options) for *_, options in TRAITS], 1)
        missed = [
            functional.cross_entropy(of_trait, wanted[:, k], ignore_index=UNKNOWN, reduction="sum")
            for k, of_trait in enumerate(logits)
        ]
        noun = torch.from_numpy(lesson.labels["class"][rows])
        guessed = self.sizes(features).float().unflatten(1, (len(NOUNS), SIZES))
        guessed = guessed[torch.arange(len(rows)), noun]
        mark = torch.from_numpy(lesson.marks[rows])
        return {
            "traits": torch.stack(missed).sum() / (wanted != UNKNOWN).sum(),
            "sizes": functional.mse_loss(guessed, torch.from_numpy(lesson.sizes[rows])),
            "mark": functional.cross_entropy(self.mark(features).float(), mark),
        }


def train_oracle(
    oracle: StorybookOracle,
    lesson: Lesson,
    half_trained: np.ndarray,
    vae: AutoencoderKL,
    settings: LoopSettings,
    families: int,
    seed: int,
    state: Path,
) -> StorybookOracle:
    """Train on `families` families a step; `half_trained` pictures (N x 64 x 64 x 3) are "none"."""
    details = Details(oracle.features)
    networks = nn.ModuleDict({"oracle": oracle, "details": details})
    nn.utils.convert_conv2d_weight_memory_format(networks, torch.channels_last)  # faster
    loop = Loop(networks, settings, state)
    per_family = FAMILY * VIEWS
    available = len(lesson.pictures) // per_family

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.choice(available, size=families, replace=False)
        rows = (chosen[:, None] * per_family + np.arange(per_family)).ravel()
        torch.manual_seed(seed + step)  # the posterior's sample
        good = to_unit(lesson.pictures[rows])
        bad = _bad(good, half_trained, rng)
        soft = torch.from_numpy(rng.permutation(len(rows))[: int(DECODED_SHARE * len(rows))])
        good[soft] = decoded(vae, good[soft])
        shown = torch.cat([augment(good, rng), augment(bad, rng)])
        n = len(good)
        with autocast(CPU, native_precision("cpu")):
            seen = oracle.look(shown.contiguous(memory_format=torch.channels_last))
            out = oracle.answer(seen)
            losses = details.losses(oracle.described(seen[:n]), lesson, rows)
        losses |= {
            name: functional.cross_entropy(out[name][:n].float(), torch.from_numpy(labels[rows]))
            for name, labels in lesson.labels.items()
        }
        is_none = (torch.arange(len(shown)) >= n).float()
        losses["none"] = functional.binary_cross_entropy_with_logits(out["none"].float(), is_none)
        losses["design"] = contrast(out["embedding"][:n], torch.from_numpy(lesson.identity[rows]))
        return torch.stack(list(losses.values())).sum(), {k: v.item() for k, v in losses.items()}

    networks.train()
    loop.run(loss_at)
    loop.load_average()
    nn.utils.convert_conv2d_weight_memory_format(oracle, torch.contiguous_format)
    return oracle.eval().requires_grad_(False)


def _bad(good: Tensor, half_trained: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Pictures of nothing: some of the good ones spoilt, and as many that are half trained."""
    count = int(SPOILT_SHARE * len(good))
    bad = spoil(good[torch.from_numpy(rng.permutation(len(good))[:count])], rng)
    if not len(half_trained):
        return bad
    early = to_unit(half_trained[rng.integers(len(half_trained), size=count)])
    early = recolour(early.flip(3) if rng.random() < 0.5 else early, rng)
    return torch.cat([bad, early])  # few pictures, shown in many ways
