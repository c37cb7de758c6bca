"""The shipped oracle on pictures it has never seen, and what it is taught with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.storybook import ACCESSORIES, NOUNS, SETTINGS, SUBJECTS, heldout_scenes, render
from ldm.storybook.oracle import StorybookOracle, load_oracle
from ldm.storybook.pretraining.oracle import (
    FAMILY,
    SPOILER_NAMES,
    VIEWS,
    contrast,
    draw_lesson,
    spoil,
)
from ldm.storybook.pretraining.score import score_oracle, score_pairs
from ldm.storybook.pretraining.vae import to_unit


@pytest.fixture(scope="module")
def oracle() -> StorybookOracle:
    return load_oracle()


def test_reads_fresh_renders_and_refuses_spoilt_ones(oracle: StorybookOracle) -> None:
    scores = score_oracle(oracle, renders=600, families=20, seed=77_000)
    for attribute in ("class", "colour", "setting", "accessory"):
        assert scores[attribute]["value"] >= 0.98, attribute
    assert scores["renders taken for none of these"]["value"] <= 0.02
    caught = [scores[f"caught: {name}"]["value"] for name in SPOILER_NAMES]
    assert np.mean(caught) >= 0.95


def test_tells_designs_of_one_class_apart(oracle: StorybookOracle) -> None:
    told = score_pairs(oracle, families=120, seed=78_000)
    assert told["pairs of designs told apart"]["value"] >= 0.84


@pytest.mark.xfail(strict=True, reason="the shipped oracle reaches 89 %; see scores.json")
def test_tells_nearly_all_designs_apart(oracle: StorybookOracle) -> None:
    told = score_pairs(oracle, families=120, seed=78_000)
    assert told["pairs of designs told apart"]["value"] >= 0.95


def test_shipped_subjects_are_known_again(oracle: StorybookOracle) -> None:
    pictures = [render(scene) for s in SUBJECTS.values() for scene, _ in heldout_scenes(s)[::5]]
    embedding = np.stack([r.embedding for r in oracle.read(pictures)])
    cosines = (embedding @ embedding.T).reshape(len(SUBJECTS), 4, len(SUBJECTS), 4).mean((1, 3))
    assert (cosines.argmax(1) == np.arange(len(SUBJECTS))).all()


def test_size_on_disk() -> None:
    assert Path("data/storybook-oracle/oracle.safetensors").stat().st_size <= 2 * 2**20


def test_missing_oracle_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no oracle\.safetensors.*evaluation\.oracle=null"):
        StorybookOracle.load(tmp_path)


def test_questions_ask_every_setting_and_accessory(oracle: StorybookOracle) -> None:
    questions = oracle.questions("sks", "robot")
    assert {q.expected["setting"] for q in questions if "setting" in q.expected} == set(SETTINGS)
    worn = {q.expected["accessory"] for q in questions if "accessory" in q.expected}
    assert worn == set(ACCESSORIES[1:])
    assert questions[-1].prompt == "a drawing of a robot"
    assert "sks robot" in questions[0].prompt
    assert "spaceship" not in NOUNS
    assert oracle.questions("sks", "spaceship")[-1].expected == {}


def test_a_lesson_shows_each_thing_several_times() -> None:
    lesson = draw_lesson(4, seed=1)
    assert lesson.pictures.shape == (4 * FAMILY * VIEWS, 64, 64, 3)
    assert np.bincount(lesson.identity).tolist() == [VIEWS] * (4 * FAMILY)
    nouns = lesson.labels["class"].reshape(4, FAMILY * VIEWS)
    assert (nouns == nouns[:, :1]).all()  # a family is of one class


@pytest.mark.parametrize("kind", range(len(SPOILER_NAMES)), ids=SPOILER_NAMES)
def test_spoiling_leaves_no_picture_as_it_was(kind: int) -> None:
    pictures = to_unit(draw_lesson(1, seed=2).pictures)
    spoilt = spoil(pictures, np.random.default_rng(0), kind)
    assert spoilt.shape == pictures.shape
    assert (spoilt - pictures).abs().mean((1, 2, 3)).min() > 0.02


def test_contrast_is_the_papers_formula() -> None:
    points = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    identity = torch.tensor([0, 0, 1, 1, 1, 2])
    terms = []
    for i in range(6):
        friends = [p for p in range(6) if p != i and identity[p] == identity[i]]
        if friends:
            alike = [float(torch.exp(points[i] @ points[a] / 0.1)) for a in range(6)]
            below = sum(alike) - alike[i]
            terms.append(-sum(math.log(alike[p] / below) for p in friends) / len(friends))
    assert contrast(points, identity).item() == pytest.approx(sum(terms) / len(terms))
