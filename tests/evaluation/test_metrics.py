"""Scores against formulas written out here in float64, and against torchmetrics."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ldm.evaluation import metrics
from ldm.evaluation.metrics import (
    Score,
    _t95,
    ceiling,
    copied,
    copying,
    cosine_distances,
    diversity,
    drift,
    kid,
    mean,
    nearest,
    normal_nearest,
    paired_difference,
    share,
    similarity_to,
    spread,
    total_variation,
)


def unit_rows(n: int, dimension: int = 8, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dimension))
    rows[:, 0] += shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_share_has_wilsons_interval() -> None:
    score = share([True] * 8 + [False] * 2)
    z, n, p = 1.959964, 10, 0.8
    # The interval's ends solve (p - q)^2 = z^2 q (1 - q) / n.
    for end in (score["low"], score["high"]):
        assert math.isclose((p - end) ** 2, z * z * end * (1 - end) / n, rel_tol=1e-6)
    assert score["low"] < p < score["high"]
    assert score["n"] == 10


def test_share_of_all_is_not_certain() -> None:
    score = share([True] * 20)
    assert score["value"] == score["high"] == 1.0
    assert 0.8 < score["low"] < 1.0


def test_mean_has_a_bootstrap_interval_that_narrows() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    few, many = mean(values[:25].tolist()), mean(values.tolist())
    assert math.isclose(many["value"], values.mean())
    width = many["high"] - many["low"]
    assert math.isclose(width, 2 * 1.96 * values.std() / math.sqrt(400), rel_tol=0.15)
    assert width < few["high"] - few["low"]


def test_too_few_observations_are_refused() -> None:
    one, some = unit_rows(1), unit_rows(3)
    for call in (
        lambda: share([]),
        lambda: mean([]),
        lambda: diversity([]),
        lambda: total_variation([], ["a"]),
        lambda: paired_difference([], [], []),
    ):
        with pytest.raises(ValueError, match="of no "):
            call()
    for call in (lambda: ceiling(one), lambda: spread(one), lambda: kid(one, some)):
        with pytest.raises(ValueError, match="two pictures"):
            call()


def test_cosines() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert math.isclose(similarity_to(rows[:2], rows[2:])["value"], (0.6 + 0.8) / 2)
    # Pairs: 0, 0.6 and 0.8 alike, so 1, 0.4 and 0.2 apart.
    assert math.isclose(ceiling(rows)["value"], (0 + 0.6 + 0.8) / 3)
    assert math.isclose(spread(rows)["value"], (1 + 0.4 + 0.2) / 3)


def test_embeddings_are_computed_with_in_float64() -> None:
    rows = unit_rows(40, 64)
    exact, single = spread(rows), spread(rows.astype(np.float32))
    assert cosine_distances(rows.astype(np.float32)).dtype == np.float64
    assert math.isclose(exact["value"], single["value"], rel_tol=1e-6)


def test_diversity_is_within_prompts() -> None:
    prompts = [unit_rows(3, seed=1), unit_rows(5, seed=2), unit_rows(4, seed=3)]
    expected = []
    for rows in prompts:
        apart = [1 - rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]
        expected.append(sum(apart) / len(apart))
    score = diversity([cosine_distances(rows) for rows in prompts])
    assert math.isclose(score["value"], sum(expected) / 3)
    assert score["n"] == 12
    # Prompts are resampled: with three, one of them alone is no rare resample (1 in 27).
    assert math.isclose(score["low"], min(expected)) and math.isclose(score["high"], max(expected))


def test_the_interval_of_pairs_is_that_of_new_pictures() -> None:
    """Pairs share pictures, so that the interval is twice as wide as that of the rows' means."""
    truth = spread(unit_rows(3000, 3, seed=99, shift=1.0))["value"]
    scores = [spread(unit_rows(40, 3, seed=seed, shift=1.0)) for seed in range(200)]
    covered = np.mean([score["low"] <= truth <= score["high"] for score in scores])
    assert 0.88 <= covered <= 1.0
    actual = 2 * 1.96 * np.std([score["value"] for score in scores])
    assert math.isclose(np.mean([s["high"] - s["low"] for s in scores]), actual, rel_tol=0.2)


def test_two_pictures_have_one_pair() -> None:
    rows = np.array([[1.0, 0.0], [0.6, 0.8]])
    score = spread(rows)
    assert score == pytest.approx(Score(value=0.4, low=0.4, high=0.4, n=2))


def test_nearest_training_picture_against_what_is_normal() -> None:
    training = unit_rows(4, seed=1)
    heldout = unit_rows(20, seed=2)
    by_hand = [max(float(row @ other) for other in training) for row in heldout]
    assert np.allclose(nearest(heldout, training), by_hand)
    normal = normal_nearest(training, heldout)
    assert normal is not None and math.isclose(normal, np.percentile(by_hand, 95))
    cosines = nearest(np.concatenate([training[:1], heldout]), training)
    assert math.isclose(copying(cosines, normal)["value"], cosines.mean() - normal)
    # One of the twenty is above their own 95th percentile, and the copy.
    assert math.isclose(copied(cosines, normal)["value"], 2 / 21)


def test_without_held_out_pictures_each_training_picture_is_left_out_once() -> None:
    training = unit_rows(5, seed=1)
    by_hand = [max(float(training[i] @ training[j]) for j in range(5) if j != i) for i in range(5)]
    none = np.zeros((0, 8))
    normal = normal_nearest(training, none)
    assert normal is not None and math.isclose(normal, np.percentile(by_hand, 95))
    assert normal_nearest(training[:1], none) is None


def test_drift_is_paired() -> None:
    rows, base = unit_rows(6, seed=1), unit_rows(6, seed=2)
    by_hand = sum(1 - float(rows[i] @ base[i]) for i in range(6)) / 6
    assert math.isclose(drift(rows, base)["value"], by_hand)
    assert drift(rows, rows)["value"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="paired by row"):
        drift(rows, base[:5])


def kid_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_unbiased_estimate() -> None:
    x, y = unit_rows(9, 5, seed=1, shift=1.0), unit_rows(7, 5, seed=2)
    assert math.isclose(kid(x, y)["value"], kid_by_hand(x, y), rel_tol=1e-10)
    from torchmetrics.image.kid import poly_mmd

    reference = poly_mmd(torch.from_numpy(x[:7]), torch.from_numpy(y))  # takes equal numbers only
    assert math.isclose(kid(x[:7], y)["value"], float(reference), rel_tol=1e-10)
    # Features that are no unit rows, as those of Inception.
    assert math.isclose(kid(9 * x, 9 * y)["value"], kid_by_hand(9 * x, 9 * y), rel_tol=1e-10)


def test_kid_of_one_distribution_is_around_zero() -> None:
    scores = [kid(unit_rows(30, seed=s), unit_rows(30, seed=1000 + s)) for s in range(100)]
    values = np.array([score["value"] for score in scores])
    assert abs(values.mean()) < 3 * values.std() / 10
    covered = np.mean([score["low"] <= 0 <= score["high"] for score in scores])
    assert covered >= 0.85
    assert kid(unit_rows(30, shift=2.0), unit_rows(30, seed=1))["low"] > 0


def test_total_variation() -> None:
    words, base = ["red"] * 60 + ["blue"] * 40, ["red"] * 30 + ["green"] * 20
    score = total_variation(words, base)
    assert math.isclose(score["value"], 0.5 * (abs(0.6 - 0.6) + abs(0.4 - 0) + abs(0 - 0.4)))
    assert score["low"] < 0.4 < score["high"] and score["n"] == 100
    few = total_variation(words[::5], base[::5])
    assert few["high"] - few["low"] > score["high"] - score["low"]
    # Resamples of equal samples differ from one another: the value is below all of them.
    many = [f"word {i % 20}" for i in range(100)]
    same = total_variation(many, many)
    assert same["value"] == same["low"] == 0 < 0.1 < same["high"]


def test_paired_difference_resamples_prompts() -> None:
    generator = np.random.default_rng(5)
    groups = [f"prompt {i}" for i in range(6) for _ in range(50)]
    effects = np.repeat(generator.normal(0.0, 1.0, 6), 50)
    b = generator.normal(size=300)
    a = b + effects + generator.normal(0.0, 0.01, 300)
    score = paired_difference(a, b, groups)
    assert math.isclose(score["value"], (a - b).mean()) and score["n"] == 6
    # Six prompts that differ by about 1: pictures as independent observations would claim a tenth.
    assert score["high"] - score["low"] > 5 * (mean(a - b)["high"] - mean(a - b)["low"])
    assert paired_difference(b, a, groups)["value"] == -score["value"]
    assert paired_difference(b + 0.1, b, groups)["low"] > 0
    assert paired_difference(a[:50], b[:50], groups[:50])["n"] == 1
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(a, b[:1], groups)


def test_groups_of_unequal_size_count_by_their_pictures() -> None:
    score = paired_difference([1.0, 1.0, 1.0, 5.0], [0.0] * 4, ["p", "p", "p", "q"])
    assert math.isclose(score["value"], 2.0)
    # Of two groups the bootstrap's ends are the groups themselves; sqrt(2) t / z moves them.
    wider = math.sqrt(2) * 12.7062 / 1.959964
    assert score["low"] == pytest.approx(2 - wider) and score["high"] == pytest.approx(
        2 + 3 * wider
    )


@pytest.mark.parametrize("n", [3, 6, 12])
def test_the_interval_of_few_groups_holds_the_truth_as_often_as_it_says(n: int) -> None:
    rng, groups = np.random.default_rng(n), [str(i) for i in range(n)]
    hits = 0
    for _ in range(400):
        score = paired_difference(rng.normal(0.5, 1.0, n), np.zeros(n), groups)
        hits += score["low"] <= 0.5 <= score["high"]
    assert 0.92 <= hits / 400 <= 0.98  # three standard errors around .95


def test_students_t() -> None:
    known = {1: 12.7062, 4: 2.7764, 5: 2.5706, 8: 2.3060, 11: 2.2010, 30: 2.0423, 500: 1.9647}
    for degrees, value in known.items():
        assert _t95(degrees) == pytest.approx(value, abs=0.003)


SCORES: dict[str, Callable[[int, int], Score]] = {
    "similarity_to": lambda n, s: similarity_to(unit_rows(n, seed=s), unit_rows(3)),
    "ceiling": lambda n, s: ceiling(unit_rows(n, seed=s)),
    "spread": lambda n, s: spread(unit_rows(n, seed=s)),
    "diversity": lambda n, s: diversity([cosine_distances(unit_rows(n, seed=s))] * 3),
    "drift": lambda n, s: drift(unit_rows(n, seed=s), unit_rows(n)),
    "kid": lambda n, s: kid(unit_rows(n, seed=s), unit_rows(n)),
    "total_variation": lambda n, s: total_variation(["a"] * n, ["a"] * s + ["b"]),
    "paired_difference": lambda n, s: paired_difference([1.0] * n, [0.5] * n, ["p"] * n),
}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_holds_its_value_and_is_repeatable(name: str) -> None:
    for n in (2, 3, 30):
        for seed in range(3):
            score = SCORES[name](n, seed)
            assert score["low"] <= score["value"] <= score["high"]
            assert all(isinstance(score[key], float) for key in ("value", "low", "high"))
            assert isinstance(score["n"], int)
            assert SCORES[name](n, seed) == score


def test_the_resamples_are_of_as_many_as_there_are() -> None:
    counts = metrics._resamples(7, np.random.default_rng(0))
    assert counts.shape == (metrics.RESAMPLES, 7) and (counts.sum(axis=1) == 7).all()
    assert abs(counts.var() - 6 / 7) < 0.05  # multinomial: n p (1 - p)
