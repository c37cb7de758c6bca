"""What the oracle takes for a subject, on subjects and pictures that set nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.models.base import load_base
from ldm.models.precision import autocast, native_precision
from ldm.sampling.generate import generate
from ldm.storybook import NOUNS, random_subject
from ldm.storybook.oracle import StorybookOracle, load_oracle
from ldm.storybook.pretraining.identity import (
    ACCEPTED,
    DECODED,
    REFERENCES,
    RIVALS,
    SHOWN,
    Gallery,
    accepted,
    draw_gallery,
    draw_shown,
    embed,
    find_threshold,
)

BASE = Path("data/storybook-sd")


@pytest.fixture(scope="module")
def oracle() -> StorybookOracle:
    return load_oracle()


@pytest.fixture(scope="module")
def gallery(oracle: StorybookOracle) -> Gallery:
    """Subjects drawn with another seed than those that set the threshold or were measured."""
    return draw_gallery(oracle, 96, seed=81_000)


def shares(gallery: Gallery, threshold: float) -> dict[str, float]:
    return {kind: score["value"] for kind, score in accepted(gallery, threshold).items()}


def right(found: dict[str, float]) -> bool:
    """The subject's own pictures are accepted, other things of its class hardly ever."""
    return all(
        found[f"own{how}"] >= 0.93
        and found[f"world objects{how}"] <= 0.02
        and found[f"other subjects{how}"] <= 0.02
        for how in REFERENCES
    )


def test_a_blurred_subject_is_still_the_subject(oracle: StorybookOracle) -> None:
    softer = draw_gallery(oracle, 32, seed=82_000, vae=load_base(BASE).vae)
    found = shares(softer, oracle.rates["threshold"])
    assert found[DECODED] >= 0.87  # .93 of 2,560 pictures; crisp ones alone teach .88


def test_own_pictures_are_accepted_and_other_things_are_not(
    oracle: StorybookOracle, gallery: Gallery
) -> None:
    threshold = oracle.rates["threshold"]
    assert right(shares(gallery, threshold))
    assert not right(shares(gallery, threshold - 0.15))
    assert not right(shares(gallery, threshold + 0.15))


def test_the_rates_that_stand_beside_it_are_true(oracle: StorybookOracle, gallery: Gallery) -> None:
    for kind, found in accepted(gallery, oracle.rates["threshold"]).items():
        told = oracle.rates[kind]
        # Pictures of one subject are alike, so their number counts for less.
        deviation = np.sqrt(max(told * (1 - told), 0.005) / (found["n"] / 3))
        assert abs(found["value"] - told) <= 3.5 * deviation, kind


def test_the_rates_stand_in_the_scores_too(oracle: StorybookOracle) -> None:
    scores = json.loads((BASE / "scores.json").read_text())["identity"]
    assert oracle.rates.keys() == {"threshold", *scores}
    for name, score in scores.items():
        assert oracle.rates[name] == pytest.approx(score["value"], abs=1e-5)
        assert score["n"] >= 256


@pytest.mark.parametrize("noun", ["robot", "cat"])
def test_the_bases_own_pictures_of_a_class_are_not_accepted(
    oracle: StorybookOracle, gallery: Gallery, noun: str
) -> None:
    with autocast(torch.device("cpu"), native_precision("cpu")):
        drawn = list(
            generate(load_base(BASE), [f"a drawing of a {noun}"] * 12, range(12), steps=8, batch=12)
        )
    embeddings = embed(oracle, drawn)
    subjects = gallery.references[NOUNS.index(noun) :: len(NOUNS)]
    taken = [oracle.accepts(embeddings, references) for references in subjects]
    assert np.mean(taken) <= 0.03


def test_accepting_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    oracle = StorybookOracle()
    oracle.rates = {"threshold": 0.2}
    points, references = rng.standard_normal((40, 6)), rng.standard_normal((3, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    mean = [sum(column) / 3 for column in references.T]
    length = sum(x * x for x in mean) ** 0.5
    expected = [sum(a * b for a, b in zip(p, mean, strict=True)) / length >= 0.2 for p in points]
    got = oracle.accepts(points, references)
    assert got.dtype == bool and got.tolist() == expected
    assert 0 < sum(expected) < 40


def test_rivals_are_what_they_are_called() -> None:
    rng = np.random.default_rng(5)
    subject = random_subject(rng, "robot")
    shown = draw_shown(subject, rng)
    assert tuple(shown) == ("own", *RIVALS)
    assert all(len(scenes) == SHOWN for scenes in shown.values())
    assert {s.noun for scenes in shown.values() for s in scenes} == {"robot"}

    def alike(kind: str) -> tuple[set[bool], set[bool]]:
        """Whether design and colouring (with the mark) are the subject's."""
        own = (subject.body, subject.second, subject.mark, subject.mark_rgb)
        return {s.design == subject.design for s in shown[kind]}, {
            (s.body_rgb, s.second_rgb, s.mark, s.mark_rgb) == own for s in shown[kind]
        }

    assert alike("own") == ({True}, {True})
    assert alike("same colours") == ({False}, {True})
    assert alike("same design") == ({True}, {False})
    assert alike("other subjects") == alike("world objects") == ({False}, {False})
    assert all(s.mark is None and s.colour for s in shown["world objects"])


def test_the_threshold_is_the_least_that_holds_for_every_rival_and_both_references() -> None:
    rng = np.random.default_rng(2)
    points = rng.standard_normal((8 * 125, 33, 5))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    shown = {"near": points[:, 25:29], "far": -points[:, :4]}
    gallery = Gallery(points[:, :25], shown)
    threshold = find_threshold(gallery, ["near", "far"])
    found = shares(gallery, threshold)
    assert max(found.values()) == pytest.approx(ACCEPTED, abs=1 / 4000)
    assert find_threshold(gallery, ["far"]) < threshold
