"""Steps that are not finite are skipped and named; three in a row are the end."""

import logging
from typing import Any

import pytest
import torch

from ldm.training.guard import FiniteGuard


def micro_batch(step: int) -> dict[str, Any]:
    return {"names": ["a.png", "b.png"], "timesteps": torch.tensor([7, 900]), "step": step}


def outcome(
    guard: FiniteGuard, step: int, losses: list[float], norm: float, scaled: bool = False
) -> bool:
    guard.note(micro_batch(step), torch.tensor(losses))
    return guard.step_is_good(torch.tensor(norm), scaled)


def test_a_finite_step_is_good_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    guard = FiniteGuard()
    assert outcome(guard, 0, [0.1, 0.2], 3.0)
    assert not caplog.records and guard.hopeless is None


def test_the_picture_and_timestep_with_the_wrong_loss_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = FiniteGuard()
    guard.note(micro_batch(4), torch.tensor([0.1, 0.2]))  # the step's other micro-batch
    assert not outcome(guard, 4, [0.1, float("nan")], float("nan"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "step 5 is skipped" in message and "b.png at timestep 900" in message
    assert "a.png" not in message


def test_a_gradient_alone_names_all_samples(caplog: pytest.LogCaptureFixture) -> None:
    assert not outcome(FiniteGuard(), 4, [0.1, 0.2], float("inf"))
    assert "a.png at timestep 7, b.png at timestep 900" in caplog.text


def test_three_in_a_row_are_hopeless_and_a_good_one_begins_anew() -> None:
    guard, bad = FiniteGuard(), float("nan")
    for step, norm in enumerate([bad, bad, 1.0, bad, bad]):
        outcome(guard, step, [0.1, 0.2], norm)
        assert guard.hopeless is None
    outcome(guard, 5, [0.1, 0.2], bad)
    assert guard.hopeless is not None and "steps 4, 5, 6" in guard.hopeless
    assert "training.learning_rate" in guard.hopeless


def test_what_was_noted_is_forgotten_after_its_step(caplog: pytest.LogCaptureFixture) -> None:
    guard = FiniteGuard()
    outcome(guard, 0, [float("nan"), 0.1], float("nan"))
    caplog.clear()
    outcome(guard, 1, [0.1, 0.1], float("nan"))
    assert "gradient is not finite" in caplog.text


def test_a_scalers_infinite_gradient_is_no_trouble() -> None:
    guard = FiniteGuard()
    assert outcome(guard, 0, [0.1, 0.2], float("inf"), scaled=True)
    assert not outcome(guard, 1, [0.1, float("inf")], 1.0, scaled=True)


def test_one_process_that_skips_makes_all_skip() -> None:
    guard = FiniteGuard()
    guard.note(micro_batch(0), torch.tensor([0.1, 0.2]))
    assert not guard.step_is_good(torch.tensor(1.0), True, agree=lambda skipped: True)
    assert guard.skipped and guard.bad_steps == [1]
    assert outcome(guard, 1, [0.1, 0.2], 1.0) and not guard.skipped
