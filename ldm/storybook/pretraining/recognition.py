"""What the oracle recognises a thing by, taught once more on pictures as a model draws them.

All else that the oracle reads stays as it is: only `describe` and `embed` are trained, on what its
frozen layers see of each picture, which is computed once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldm.storybook.oracle import StorybookOracle
from ldm.storybook.pretraining.lessons import FAMILY, VIEWS
from ldm.storybook.pretraining.loop import Loop, LoopSettings
from ldm.storybook.pretraining.oracle import augment, contrast
from ldm.storybook.pretraining.vae import to_unit

PER_FAMILY = FAMILY * VIEWS


@torch.inference_mode()
def seen_of(
    oracle: StorybookOracle, pictures: np.ndarray, faults: int | None = None, batch: int = 256
) -> np.ndarray:
    """What `oracle.look` sees of N x 64 x 64 x 3, uint8: N x C, float16.

    faults: seed of the small ones that `augment` adds; None: the pictures as they are.
    """
    parts = []
    for start in range(0, len(pictures), batch):
        shown = to_unit(pictures[start : start + batch])
        if faults is not None:
            shown = augment(shown, np.random.default_rng([faults, start]))
        parts.append(oracle.look(shown).half().numpy())
    return np.concatenate(parts)


def train_recognition(
    oracle: StorybookOracle,
    crisp: list[np.ndarray],
    soft: np.ndarray,
    settings: LoopSettings,
    families: int,
    seed: int,
    state: Path,
) -> StorybookOracle:
    """Train on `families` families a step and return the oracle with the averaged weights.

    crisp: what is seen of all pictures of a lesson, N x C each, in one or more renderings; soft:
    the same of its first pictures, softened. Half of a step's families are among these, and their
    pictures are shown softened as often as not.
    """
    oracle.requires_grad_(False)
    trained = nn.ModuleDict({"describe": oracle.describe, "embed": oracle.embed})
    loop = Loop(trained.requires_grad_(True), settings, state)
    drawn, softened = len(crisp[0]) // PER_FAMILY, len(soft) // PER_FAMILY

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        first = rng.choice(softened, size=min(families // 2, softened), replace=False)
        others = np.setdiff1d(np.arange(drawn), first)
        others = rng.choice(others, size=min(families - len(first), len(others)), replace=False)
        chosen = np.concatenate([first, others])
        rows = (chosen[:, None] * PER_FAMILY + np.arange(PER_FAMILY)).ravel()
        version = rng.integers(len(crisp), size=len(rows))
        shown = np.stack([crisp[v][row] for v, row in zip(version, rows, strict=True)])
        swapped = (rows < len(soft)) & (rng.random(len(rows)) < 0.5)
        shown[swapped] = soft[rows[swapped]]
        embedding = oracle.recognise(torch.from_numpy(shown).float())
        loss = contrast(embedding, torch.from_numpy(rows // VIEWS))
        return loss, {"loss": loss.item()}

    trained.train()
    loop.run(loss_at)
    loop.load_average()
    return oracle.eval().requires_grad_(False)
