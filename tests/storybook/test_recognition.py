"""Recognition is taught on pictures as a model draws them, and changes nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.models.base import BaseModel, load_base
from ldm.storybook.oracle import StorybookOracle
from ldm.storybook.pretraining import soft as softening
from ldm.storybook.pretraining.lessons import VIEWS, draw_lesson
from ldm.storybook.pretraining.loop import LoopSettings
from ldm.storybook.pretraining.recognition import PER_FAMILY, seen_of, train_recognition
from ldm.storybook.pretraining.soft import soften
from ldm.storybook.pretraining.vae import to_unit


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("data/storybook-sd")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return draw_lesson(1, 77).pictures[:8]


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean difference of each picture's pixels, of 255."""
    return np.abs(first.astype(int) - second.astype(int)).mean(axis=(1, 2, 3))


def test_softened_pictures_are_the_same_ones_less_crisp(
    base: BaseModel, pictures: np.ndarray
) -> None:
    softened = soften(base, pictures, seed=3)
    assert softened.shape == pictures.shape and softened.dtype == np.uint8
    assert (softened == soften(base, pictures, seed=3)).all()
    assert (softened != soften(base, pictures, seed=4)).any()
    own, others = distance(softened, pictures), distance(softened, np.roll(pictures, 1, axis=0))
    assert (own > 1).all() and (own < 0.5 * others).all()


def test_one_that_is_not_redrawn_is_what_the_vae_gives(
    base: BaseModel, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softening, "REDRAWN_SHARE", 0.0)
    with torch.inference_mode():
        mean = base.vae.encode(to_unit(pictures)).latent_dist.mean
        plain = base.vae.decode(mean).sample.clamp(-1, 1)
    expected = ((plain + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    once = soften(base, pictures, seed=3)
    assert distance(once, expected).max() < 2  # the posterior is narrow
    monkeypatch.setattr(softening, "REDRAWN_SHARE", 1.0)
    twice = soften(base, pictures, seed=3)
    assert (distance(twice, pictures) > distance(once, pictures)).mean() > 0.8


def test_only_recognition_changes_and_it_learns_softened_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle = StorybookOracle([4, 4, 8, 8], features=16).eval()
    with torch.no_grad():
        oracle.describe.weight.mul_(20)  # so that things differ from the start
    lesson = draw_lesson(2, 5)
    before = {name: value.clone() for name, value in oracle.state_dict().items()}
    crisp = [seen_of(oracle, lesson.pictures, faults) for faults in (None, 1)]
    assert crisp[0].shape == (2 * PER_FAMILY, 8 * 16) and crisp[0].dtype == np.float16
    assert (crisp[0] != crisp[1]).any() and (crisp[1] == seen_of(oracle, lesson.pictures, 1)).all()
    soft = seen_of(oracle, 255 - lesson.pictures[:PER_FAMILY])

    def gap() -> float:
        """Cosine of softened pictures to crisp ones of the same thing, less that to others."""
        seen = torch.from_numpy(np.stack([crisp[0][:PER_FAMILY], soft])).float()
        crisp_ones, soft_ones = oracle.recognise(seen).detach()
        cosines = soft_ones @ crisp_ones.T
        thing = torch.arange(PER_FAMILY) // VIEWS
        same = thing[:, None] == thing[None]
        return float(cosines[same].mean() - cosines[~same].mean())

    first = gap()
    settings = LoopSettings(60, 1e-2, 1, 0.5, ema=0.9)
    train_recognition(oracle, crisp, soft, settings, 2, 0, tmp_path / "state.pt")
    assert gap() > first + 0.1
    after = oracle.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"describe.weight", "describe.bias", "embed.weight", "embed.bias"}
    assert not any(weight.requires_grad for weight in oracle.parameters())


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    lesson = draw_lesson(2, 5)

    def trained(state: str, *lengths: int) -> StorybookOracle:
        torch.manual_seed(0)
        oracle = StorybookOracle([4, 4, 4, 4], features=8).eval()
        seen = seen_of(oracle, lesson.pictures)
        whole = LoopSettings(6, 1e-2, 1, 0.0, ema=0.9)
        for steps in lengths:
            settings = replace(whole, steps=steps)
            train_recognition(oracle, [seen], seen[:PER_FAMILY], settings, 2, 0, tmp_path / state)
        return oracle

    straight, resumed = trained("a.pt", 6), trained("b.pt", 3, 6)
    assert torch.equal(straight.embed.weight, resumed.embed.weight)
