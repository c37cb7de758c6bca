"""The timesteps' distributions against their analytic distribution functions."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch

from ldm.errors import UserError
from ldm.objective import Timesteps, draw_timestep, timestep_range
from ldm.randomness import generator

N = 6000
# The distribution function of u, the place in the range.
CDF: dict[Timesteps, Callable[[float], float]] = {
    "uniform": lambda u: u,
    "logit_normal": lambda u: NormalDist(0.4, 1.5).cdf(math.log(u / (1 - u))),
    "cubic": lambda u: 1 - (1 - u) ** (1 / 3),  # P(1 - x^3 <= u)
}


def draws(distribution: Timesteps, among: range, number: int = N) -> list[int]:
    return [
        draw_timestep(
            among, generator(5, "timestep", 0, n), distribution, logit_mean=0.4, logit_std=1.5
        )
        for n in range(number)
    ]


@pytest.mark.parametrize("distribution", CDF)
@pytest.mark.parametrize("among", [range(1000), range(200, 700)])
def test_quantiles_and_mean(distribution: Timesteps, among: range) -> None:
    t = sorted(draws(distribution, among))
    size, cdf = len(among), CDF[distribution]
    assert among.start <= t[0] and t[-1] < among.stop
    # Kolmogorov-Smirnov over all timesteps: 1.95 / sqrt(N) is passed with probability 0.001
    counts = torch.bincount(torch.tensor(t) - among.start, minlength=size).double()
    expected = torch.tensor([cdf(k / size) for k in range(1, size)] + [1.0], dtype=torch.float64)
    assert (counts.cumsum(0) / N - expected).abs().max() < 1.95 / math.sqrt(N)
    density = expected.diff(prepend=torch.zeros(1, dtype=torch.float64))
    values = torch.arange(among.start, among.stop, dtype=torch.float64)
    mean = (values * density).sum()
    deviation = ((values - mean) ** 2 * density).sum().sqrt()
    assert abs(sum(t) / N - mean) < 4 * deviation / math.sqrt(N)
    assert torch.tensor(t).double().std().item() == pytest.approx(deviation.item(), rel=0.05)


@pytest.mark.parametrize("distribution", CDF)
@pytest.mark.parametrize("among", [range(3, 8), range(1), range(999, 1000)])
def test_the_range_is_exact_and_both_ends_are_reached(
    distribution: Timesteps, among: range
) -> None:
    assert set(draws(distribution, among, 600)) == set(among)


@pytest.mark.parametrize("end", [-1e6, 1e6])
def test_far_ends_of_the_logit_normal_stay_inside(end: float) -> None:
    t = draw_timestep(range(2, 9), generator(0, "timestep"), "logit_normal", logit_mean=end)
    assert t == (2 if end < 0 else 8)


def test_a_draw_depends_on_its_generator_alone() -> None:
    one = [draw_timestep(range(1000), generator(1, "timestep", s, 0)) for s in range(20)]
    assert one == [draw_timestep(range(1000), generator(1, "timestep", s, 0)) for s in range(20)]
    assert len(set(one)) > 15


def test_ranges() -> None:
    assert timestep_range(0, None, 1000) == range(1000)
    assert timestep_range(10, 1000, 1000) == range(10, 1000)
    assert timestep_range(999, None, 1000) == range(999, 1000)
    for minimum, maximum in ((500, 500), (600, 500), (1000, None), (-1, None)):
        with pytest.raises(UserError, match=rf"objective\.timestep_min={minimum}"):
            timestep_range(minimum, maximum, 1000)
    with pytest.raises(UserError, match=r"objective\.timestep_max=1001: .* 1000 timesteps"):
        timestep_range(0, 1001, 1000)


def test_an_unknown_distribution() -> None:
    with pytest.raises(ValueError, match="'sigmoid'"):
        draw_timestep(range(9), generator(0, "timestep"), "sigmoid")  # type: ignore[arg-type]
