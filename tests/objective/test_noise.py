"""What is added to white noise: its statistics, and that nothing depends on anything else."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.objective import (
    NoiseSchedule,
    Objective,
    ObjectiveSettings,
    offset_noise,
    perturbed_noise,
    pyramid_noise,
)
from ldm.randomness import generator

SCHEDULE = NoiseSchedule(torch.linspace(0.999, 0.005, 1000), "v_prediction")
ADDED: dict[str, Any] = {"noise_offset": 0.3, "pyramid_noise": 0.6, "input_perturbation": 0.2}


def batch(places: list[int], step: int = 3, side: int = 16) -> dict[str, Any]:
    """Posteriors that depend on the place alone."""
    made = [torch.randn(2, 4, side, side, generator=generator(1, "test", 0, n)) for n in places]
    mean, log_std = torch.stack(made, 1)
    return {"mean": mean, "std": (log_std / 4).exp(), "index": torch.tensor(places), "step": step}


def draw(places: list[int], seed: int = 7, step: int = 3, **settings: Any) -> dict[str, Tensor]:
    objective = Objective(SCHEDULE, ObjectiveSettings(**settings))
    return objective.draw(batch(places, step), seed)


def white(purpose: str, place: int, step: int = 3) -> Tensor:
    return torch.randn(4, 16, 16, generator=generator(7, purpose, step, place))


def test_plain_draws_written_out() -> None:
    drawn, given = draw([0, 5]), batch([0, 5])
    assert drawn["input_noise"] is drawn["noise"]
    for n, place in enumerate([0, 5]):
        assert drawn["noise"][n].equal(white("noise", place))
        posterior = given["mean"][n] + given["std"][n] * white("posterior", place)
        assert drawn["latents"][n].equal(posterior)
        u = torch.rand((), dtype=torch.float64, generator=generator(7, "timestep", 3, place))
        assert drawn["timesteps"][n] == int(1000 * u)
    assert drawn["timesteps"].dtype == torch.int64 and drawn["timesteps"].shape == (2,)


@pytest.mark.parametrize("settings", [{}, ADDED, {"noise_offset": 0.1}, {"pyramid_noise": 0.5}])
def test_draws_depend_on_seed_step_and_place_alone(settings: dict[str, Any]) -> None:
    whole = draw([0, 1, 2, 3], **settings)
    state = torch.random.get_rng_state()
    for places in ([2], [3, 0], [1, 9, 2]):
        part = draw(places, **settings)
        for name, values in part.items():
            for value, place in zip(values, places, strict=True):
                assert place > 3 or value.equal(whole[name][place]), name
    assert torch.random.get_rng_state().equal(state)
    for other in (draw([0, 1, 2, 3], seed=8, **settings), draw([0, 1, 2, 3], step=4, **settings)):
        for name, values in other.items():
            for n in range(4):
                assert not values[n].equal(whole[name][n]), name


def test_no_option_changes_what_another_draws() -> None:
    plain, every = draw([0, 1]), draw([0, 1], **ADDED)
    assert every["latents"].equal(plain["latents"])
    assert every["timesteps"].equal(plain["timesteps"])
    for n in (0, 1):
        source = partial(generator, 7, step=3, index=n)
        pyramid = pyramid_noise(plain["noise"][n], 0.6, source("pyramid_noise"))
        assert pyramid.equal(draw([n], pyramid_noise=0.6)["noise"][0])
        channels = torch.randn(4, 1, 1, generator=source("noise_offset"))
        offset = draw([n], noise_offset=0.3)["noise"][0] - plain["noise"][n]
        torch.testing.assert_close(offset, (0.3 * channels).expand(4, 16, 16), atol=1e-6, rtol=0)
        torch.testing.assert_close(every["noise"][n], pyramid + 0.3 * channels)
        extra = every["input_noise"][n] - every["noise"][n]
        torch.testing.assert_close(extra, 0.2 * white("input_perturbation", n), atol=1e-6, rtol=0)
    alone = draw([0, 1], input_perturbation=0.2)
    assert alone["noise"].equal(plain["noise"])
    torch.testing.assert_close(
        alone["input_noise"] - alone["noise"], every["input_noise"] - every["noise"]
    )


def test_offset_noise_moves_the_mean_of_each_channel() -> None:
    noise = torch.zeros(4000, 2, 3)
    offset = offset_noise(noise, 0.5, generator(0, "test"))
    assert offset.std((1, 2)).eq(0).all()  # one number per channel
    assert offset[:, 0, 0].std().item() == pytest.approx(0.5, rel=0.05)
    assert offset.mean().item() == pytest.approx(0, abs=0.03)


def test_perturbed_noise_has_the_deviation_of_the_sum() -> None:
    noise = torch.randn(4, 64, 64, generator=generator(0, "noise"))
    perturbed = perturbed_noise(noise, 0.75, generator(0, "test"))
    assert perturbed.std().item() == pytest.approx((1 + 0.75**2) ** 0.5, rel=0.02)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 64), (4, 40, 24), (3, 5, 1), (4, 2000, 2)])
@pytest.mark.parametrize("discount", [0.05, 0.5, 0.9])
def test_pyramid_noise_has_unit_deviation(shape: tuple[int, ...], discount: float) -> None:
    for n in range(5):
        noise = torch.randn(shape, generator=generator(0, "noise", 0, n))
        pyramid = pyramid_noise(noise, discount, generator(0, "test", 0, n))
        assert pyramid.shape == shape
        assert pyramid.std().item() == pytest.approx(1, rel=1e-5)


def test_pyramid_noise_written_out() -> None:
    """Level by level; sizes from the full one; it stops at the first side of 1 pixel."""
    noise, source = torch.randn(4, 24, 40), generator(3, "test")
    total, level, sizes = noise.clone(), 0, [(99, 99)]
    while 1 not in sizes[-1]:
        r = float(2 + 2 * torch.rand((), generator=source))
        sizes.append((max(1, int(24 / r**level)), max(1, int(40 / r**level))))
        coarse = torch.randn(1, 4, *sizes[-1], generator=source)
        total += 0.7**level * interpolate(coarse, (24, 40), mode="bilinear")[0]
        level += 1
    assert sizes[1] == (24, 40) and 3 <= len(sizes) - 1 <= 6
    ours = pyramid_noise(noise, 0.7, generator(3, "test"))
    torch.testing.assert_close(ours, total / total.std())


def test_pyramid_noise_is_coarser_the_greater_the_discount() -> None:
    def neighbours(discount: float) -> float:
        """Mean correlation of pixels that lie side by side."""
        values = []
        for n in range(40):
            noise = torch.randn(4, 32, 32, generator=generator(0, "noise", 0, n))
            noise = pyramid_noise(noise, discount, generator(0, "test", 0, n))
            values.append((noise[..., 1:] * noise[..., :-1]).mean().item())
        return sum(values) / len(values)

    fine, middle, coarse = (neighbours(discount) for discount in (0.01, 0.5, 0.9))
    assert abs(fine) < 0.02 and fine + 0.05 < middle and middle + 0.1 < coarse
