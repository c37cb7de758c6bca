"""Parameter groups and learning-rate schedules."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from ldm.training.optim import OptimizerSettings, build_optimizer, build_schedule, rate_factor


def test_groups_have_their_own_learning_rate() -> None:
    modules = {"unet": nn.Linear(2, 2), "text_encoder": nn.Linear(2, 2)}
    settings = OptimizerSettings(1e-4, 10, text_encoder_learning_rate=5e-5, weight_decay=0.3)
    groups = build_optimizer(modules, settings).param_groups
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("unet", 1e-4, 0.3),
        ("text_encoder", 5e-5, 0.3),
    ]
    same = build_optimizer(modules, OptimizerSettings(1e-4, 10)).param_groups
    assert [group["lr"] for group in same] == [1e-4, 1e-4]


def test_only_what_asks_for_gradients_is_trained() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    (group,) = build_optimizer({"unet": module}, OptimizerSettings(1e-4, 10)).param_groups
    assert len(group["params"]) == 2


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_warm_up_as_in_diffusers(schedule: str) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    theirs_optimizer = torch.optim.SGD([parameter], 1.0)
    theirs = get_scheduler(schedule, theirs_optimizer, num_warmup_steps=0, num_training_steps=20)
    ours_optimizer = torch.optim.SGD([parameter], 1.0)
    settings = OptimizerSettings(1.0, 20, schedule=schedule)  # type: ignore[arg-type]
    ours = build_schedule(ours_optimizer, settings)
    for _ in range(20):
        assert ours_optimizer.param_groups[0]["lr"] == pytest.approx(
            theirs_optimizer.param_groups[0]["lr"], abs=1e-7
        )
        for optimizer, stepper in ((theirs_optimizer, theirs), (ours_optimizer, ours)):
            optimizer.step()
            stepper.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_wastes_no_step_and_rates_stay_positive(schedule: str) -> None:
    settings = OptimizerSettings(1.0, 20, warmup=4, schedule=schedule)  # type: ignore[arg-type]
    factors = [rate_factor(step, settings) for step in range(20)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert min(factors) > 0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert rate_factor(20, settings) == (1.0 if schedule == "constant" else 0.0)
