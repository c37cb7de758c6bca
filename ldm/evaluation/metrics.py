"""Pure functions from observations to a number with its interval."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 1000
Z95 = 1.959964  # two-sided 95 % of the normal distribution


class Score(TypedDict):
    """A value, its 95 % interval and the number of observations."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool]) -> Score:
    """The share of true observations, with Wilson's interval (J. Am. Stat. Assoc. 22, 1927)."""
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no observations")
    p = sum(hits) / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Score(value=p, low=min(low, p), high=max(high, p), n=n)


def mean(values: Sequence[float]) -> Score:
    """The mean, with the percentile bootstrap's interval over the observations."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("a mean of no observations")
    rows = np.random.default_rng(0).integers(array.size, size=(RESAMPLES, array.size))
    low, high = np.percentile(array[rows].mean(axis=1), [2.5, 97.5])
    return Score(value=float(array.mean()), low=float(low), high=float(high), n=array.size)


def similarity_to(embeddings: np.ndarray, references: np.ndarray) -> Score:
    """Mean cosine of each embedding to all references; unit rows N x D and M x D."""
    return mean((embeddings @ references.T).mean(axis=1).tolist())


def spread(embeddings: np.ndarray) -> Score:
    """Mean pairwise cosine distance, 0 to 2, among unit rows N x D (N >= 2).

    The interval is over each row's mean distance to the others.
    """
    n = len(embeddings)
    distances = 1 - embeddings @ embeddings.T
    return mean((distances.sum(axis=1) / (n - 1)).tolist())
