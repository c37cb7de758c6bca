"""Scores against formulas written out here."""

import math

import numpy as np
import pytest

from ldm.evaluation.metrics import mean, share, similarity_to, spread


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


def test_no_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="no observations"):
        share([])
    with pytest.raises(ValueError, match="no observations"):
        mean([])


def test_cosines() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert math.isclose(similarity_to(rows[:2], rows[2:])["value"], (0.6 + 0.8) / 2)
    # Pairs: 0, 0.6 and 0.8 alike, so 1, 0.4 and 0.2 apart.
    assert math.isclose(spread(rows)["value"], (1 + 0.4 + 0.2) / 3)
