"""Pure functions from observations to a number with its interval.

NumPy in, computed in float64, a Score out. Embeddings are unit rows N x D. Intervals are the
percentile bootstrap's (Efron, 1979) unless said otherwise, with a fixed seed: equal input gives
equal output.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 1000
Z95 = 1.959964  # two-sided 95 % of the normal distribution
T95 = (12.7062, 4.3027, 3.1824, 2.7764)  # two-sided 95 % of Student's t, 1 to 4 degrees of freedom
NORMAL = 95  # percentile: what is still normal among pictures that are no copies


class Score(TypedDict):
    """A value, its 95 % interval (low <= value <= high) and the number of observations."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool] | np.ndarray) -> Score:
    """The share of true observations, with Wilson's interval (J. Am. Stat. Assoc. 22, 1927)."""
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no observations")
    p = float(np.mean(np.asarray(hits, dtype=bool)))
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Score(value=p, low=min(low, p), high=max(high, p), n=n)


def mean(values: Sequence[float] | np.ndarray) -> Score:
    """The mean; the interval resamples the observations."""
    return _mean(_float64(values), len(values))


def similarity_to(embeddings: np.ndarray, references: np.ndarray) -> Score:
    """Mean cosine of each embedding to all references: DINO, CLIP-I, PRES (arXiv 2208.12242).

    Unit rows N x D and M x D; the interval resamples the N.
    """
    return mean((_float64(embeddings) @ _float64(references).T).mean(axis=1))


def ceiling(references: np.ndarray) -> Score:
    """Mean cosine among the subject's own pictures, without self-pairs: what is reachable.

    Unit rows M x D, M >= 2; the interval resamples the pictures.
    """
    rows = _float64(references)
    return _mean_of_pairs(rows @ rows.T)


def cosine_distances(embeddings: np.ndarray) -> np.ndarray:
    """Unit rows N x D -> distances N x N, float64, 0 to 2."""
    rows = _float64(embeddings)
    return 1 - rows @ rows.T


def spread(embeddings: np.ndarray) -> Score:
    """Mean pairwise cosine distance, 0 to 2, among unit rows N x D (N >= 2)."""
    return diversity([cosine_distances(embeddings)])


def diversity(distances: Sequence[np.ndarray]) -> Score:
    """Mean pairwise distance among the pictures of one prompt, mean over prompts.

    distances: one symmetric matrix per prompt, N x N with N >= 2, of `cosine_distances` or LPIPS
    (then it is DIV of arXiv 2208.12242). n: pictures in all. The interval resamples the prompts;
    the pictures, where there is one prompt only.
    """
    if not distances:
        raise ValueError("a diversity of no pictures")
    if len(distances) == 1:
        return _mean_of_pairs(distances[0])
    means = _float64([_mean_of_pairs(matrix)["value"] for matrix in distances])
    return _mean(means, n=sum(len(matrix) for matrix in distances))


def nearest(embeddings: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Cosine of each embedding (N x D) to the nearest training picture (M x D): N, float64."""
    return (_float64(embeddings) @ _float64(training).T).max(axis=1)


def normal_nearest(training: np.ndarray, heldout: np.ndarray) -> float | None:
    """Return how near to a training picture a new picture of the subject normally is.

    The 95th percentile of the held-out pictures' `nearest`. Without held-out pictures (0 x D),
    each training picture takes their place among the others. None: with a single training picture
    and none held out nothing is known.
    """
    if len(heldout):
        return float(np.percentile(nearest(heldout, training), NORMAL))
    if len(training) < 2:
        return None
    rows = _float64(training)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    return float(np.percentile(cosines.max(axis=1), NORMAL))


def copying(cosines: np.ndarray, normal: float) -> Score:
    """Mean excess of the pictures' `nearest` over `normal_nearest`; below 0: no copies."""
    return mean(_float64(cosines) - normal)


def copied(cosines: np.ndarray, normal: float) -> Score:
    """Share of pictures whose `nearest` is above `normal_nearest`; 5 % of good ones are."""
    return share(_float64(cosines) > normal)


def drift(embeddings: np.ndarray, base: np.ndarray) -> Score:
    """Mean cosine distance, 0 to 2, of each picture to the base's of the same prompt and seed.

    Unit rows N x D, row i of both made with the same prompt and seed. ValueError: other shapes.
    """
    if embeddings.shape != base.shape:
        raise ValueError(f"pictures are paired by row, got {embeddings.shape} and {base.shape}")
    return mean(1 - (_float64(embeddings) * _float64(base)).sum(axis=1))


def kid(embeddings: np.ndarray, base: np.ndarray) -> Score:
    """Kernel distance of two sets of pictures: the unbiased MMD^2 of arXiv 1801.01401, eq. 4.

    k(x, y) = (x.y / D + 1)^3, over all pictures in closed form, N x D and M x D, N, M >= 2. Around
    0 (also a little below) when both sets come from one distribution. n: N. The interval resamples
    both sets. A picture drawn twice makes no pair with itself, or all resamples would lie higher.
    """
    if min(len(embeddings), len(base)) < 2:
        raise ValueError("KID needs two pictures on either side")
    x, y = _float64(embeddings), _float64(base)
    generator = _generator()
    of_x, of_y = _resamples(len(x), generator), _resamples(len(y), generator)
    within_x, drawn_x = _pairs(_cubic(x, x), of_x)
    within_y, drawn_y = _pairs(_cubic(y, y), of_y)
    between = _cubic(x, y)
    drawn_between = ((of_x @ between) * of_y).sum(axis=1) / between.size
    value = within_x + within_y - 2 * float(between.mean())
    return _score(value, drawn_x + drawn_y - 2 * drawn_between, len(x))


def total_variation(words: Sequence[str], base: Sequence[str]) -> Score:
    """Total variation distance, 0 to 1, of two samples of words: half the sum of |p - q|.

    n: len(words). The interval resamples both. Two samples of one distribution are apart as well
    (about 0.6 sqrt(K / n) for K equally frequent words, n in either), so the value is too high and
    the interval higher still: compare with what two draws of the base give.
    """
    if not len(words) or not len(base):
        raise ValueError("a distance of no observations")
    kinds = sorted({*words, *base})
    samples = [Counter(words), Counter(base)]
    p, q = (np.array([sample[kind] for kind in kinds]) / sample.total() for sample in samples)
    generator = _generator()
    of_p = generator.multinomial(len(words), p, RESAMPLES) / len(words)  # R x kinds
    of_q = generator.multinomial(len(base), q, RESAMPLES) / len(base)
    drawn = np.abs(of_p - of_q).sum(axis=1) / 2
    return _score(float(np.abs(p - q).sum() / 2), drawn, len(words))


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, groups: Sequence[str]
) -> Score:
    """Mean of a - b, picture by picture; the interval resamples whole groups (prompts).

    Pictures of one prompt are alike, so that the prompts, not the pictures, are the independent
    observations. a, b, groups: one entry per picture. n: groups. With one group only, its pictures
    are resampled: that says nothing of other prompts. ValueError: lengths differ, or none.

    Percentiles of the bootstrap of n groups are too narrow by sqrt((n - 1) / n), as they take the
    plug-in variance, and by the normal's quantile in place of Student's (Hesterberg, Am. Stat. 69,
    2015, sec. 3.2): of 6 groups they hold the truth in 86 % instead of 95 %. The ends are moved
    away from the mean by both factors; of many groups they stay where they are.
    """
    if not len(a) == len(b) == len(groups):
        raise ValueError(f"{len(a)}, {len(b)} values and {len(groups)} groups: not paired")
    difference = _float64(a) - _float64(b)
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 1:
        return _mean(difference, n=1)
    if len(names) == 0:
        raise ValueError("a difference of no observations")
    sums = np.bincount(places, weights=difference)
    sizes = np.bincount(places)
    n, value = len(names), float(difference.mean())
    counts = _resamples(n, _generator())
    wider = math.sqrt(n / (n - 1)) * _t95(n - 1) / Z95
    return _score(value, value + wider * ((counts @ sums) / (counts @ sizes) - value), n)


def _t95(degrees: int) -> float:
    """Two-sided 95 % of Student's t; from 5 degrees on by a series, off by less than .003 there.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if degrees <= len(T95):
        return T95[degrees - 1]
    z, v = Z95, degrees
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def _float64(values: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _generator() -> np.random.Generator:
    return np.random.default_rng(0)


def _resamples(n: int, generator: np.random.Generator) -> np.ndarray:
    """How often each of n observations is drawn, for every resample: RESAMPLES x n, float64."""
    rows = generator.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(rows.ravel(), minlength=RESAMPLES * n)
    return counts.reshape(RESAMPLES, n).astype(np.float64)


def _score(value: float, drawn: np.ndarray, n: int) -> Score:
    """Interval from the resamples' values; widened where a biased statistic leaves it."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Score(value=value, low=min(float(low), value), high=max(float(high), value), n=n)


def _mean(values: np.ndarray, n: int) -> Score:
    """Mean of the values, which are resampled, as a score of n observations."""
    if values.size == 0:
        raise ValueError("a mean of no observations")
    drawn = _resamples(values.size, _generator()) @ values / values.size
    return _score(float(values.mean()), drawn, n)


def _mean_of_pairs(matrix: np.ndarray) -> Score:
    """Mean over the pairs i != j of a symmetric N x N matrix; the interval resamples the N."""
    if len(matrix) < 2:
        raise ValueError("a mean over pairs needs two pictures")
    value, drawn = _pairs(_float64(matrix), _resamples(len(matrix), _generator()))
    return _score(value, drawn, len(matrix))


def _pairs(matrix: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over i != j of a symmetric N x N matrix: of all rows, and of each resample's.

    A row drawn twice makes no pair with itself. A resample that is one row over and over (N = 2,
    3) has no pair; it says nothing, and the mean of all takes its place.
    """
    n = len(matrix)
    diagonal = np.diagonal(matrix)
    value = float((matrix.sum() - diagonal.sum()) / (n * (n - 1)))
    sums = ((counts @ matrix) * counts).sum(axis=1) - counts**2 @ diagonal
    pairs = n**2 - (counts**2).sum(axis=1)
    return value, np.divide(sums, pairs, out=np.full(len(counts), value), where=pairs > 0)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
