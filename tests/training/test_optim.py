"""Parameter groups and learning-rate schedules."""

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from ldm.errors import UserError
from ldm.training.optim import (
    OPTIMIZERS,
    OptimizerSettings,
    build_optimizer,
    page_out,
    weights_to_look_at,
)
from ldm.training.phases import Phases
from ldm.training.rates import build_schedule, group_factor, rate_factor


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
    ours_optimizer.param_groups[0]["name"] = "unet"
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


class TinyText(nn.Module):
    """A text encoder as far as the optimizer cares: an embedding and more."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(80, 64)
        self.rest = nn.Linear(64, 64)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"unet": nn.Sequential(nn.Linear(64, 80), nn.Linear(80, 64)), "text_encoder": TinyText()}


def loss_of(modules: dict[str, nn.Module], step: int) -> torch.Tensor:
    text: Any = modules["text_encoder"]
    tokens = torch.tensor([3, 5, step % 7])
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(step))
    return (modules["unet"](text.rest(text.embedding(tokens))) - x).square().mean()


def settings_of(name: str, **more: Any) -> OptimizerSettings:
    rate = 1.0 if name == "prodigy" else 1e-2
    return OptimizerSettings(rate, 20, optimizer=name, **more)


def step(modules: dict[str, nn.Module], optimizer: Any, number: int) -> None:
    optimizer.zero_grad()
    loss_of(modules, number).backward()
    if hasattr(optimizer, "train"):
        optimizer.train()
    optimizer.step()


def state(modules: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules.values() for p in module.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    modules = networks()
    optimizer = build_optimizer(modules, settings_of(name))
    before, start = loss_of(modules, 0).item(), state(modules)
    for _ in range(60):
        step(modules, optimizer, 0)
    assert loss_of(modules, 0).item() < 0.9 * before
    moved = [not torch.equal(a, b) for a, b in zip(start, state(modules), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_bit_for_bit_from_its_state(name: str) -> None:
    whole, parted = networks(), networks()
    first = build_optimizer(whole, settings_of(name))
    for number in range(6):
        if number == 3:
            saved = io.BytesIO()
            weights = {key: module.state_dict() for key, module in whole.items()}
            torch.save({"weights": weights, "optimizer": first.state_dict()}, saved)
        step(whole, first, number)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    for key, module in parted.items():
        module.load_state_dict(loaded["weights"][key])
    second = build_optimizer(parted, settings_of(name))
    second.load_state_dict(loaded["optimizer"])
    page_out(second)
    for number in range(3, 6):
        step(parted, second, number)
    for ours, theirs in zip(state(whole), state(parted), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_moments_are_paged_out_again_where_they_were_loaded() -> None:
    weights = []
    for load_at in (None, 2):
        torch.manual_seed(0)
        layer = nn.Linear(400, 300, device="cuda")
        optimizer = build_optimizer({"unet": layer}, settings_of("paged_adamw_8bit"))
        for number in range(4):
            if number == load_at:
                optimizer.load_state_dict(optimizer.state_dict())
                for state in optimizer.state.values():  # as Lightning does
                    state.update({k: v.cuda() for k, v in state.items() if torch.is_tensor(v)})
                page_out(optimizer)
            layer.zero_grad()
            layer(torch.ones(2, 400, device="cuda")).square().mean().backward()
            optimizer.step()
        assert getattr(optimizer.state[layer.weight]["state1"], "is_paged", False)
        weights.append(layer.weight.detach().clone())
    assert torch.equal(*weights)


def test_state_is_laid_out_as_the_weights_it_is_loaded_for() -> None:
    def after(steps: int, reload_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        convolution = nn.Conv2d(4, 6, 3)
        nn.utils.convert_conv2d_weight_memory_format(convolution, torch.channels_last)
        optimizer = build_optimizer({"unet": convolution}, settings_of("adamw"))
        for number in range(steps):
            if number == reload_at:
                state = copy.deepcopy(optimizer.state_dict())
                for moments in state["state"].values():
                    for key in ("exp_avg", "exp_avg_sq"):
                        moments[key] = moments[key].contiguous()
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            convolution(torch.randn(2, 4, 5, 5)).square().mean().backward()
            optimizer.step()
        return convolution.weight.detach()

    assert torch.equal(after(4, reload_at=2), after(4, reload_at=None))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adafactor_keeps_rows_and_columns_of_a_convolutions_channels(
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(40, 60, 3).to(memory_format=layout)  # type: ignore[call-overload]
    turned = nn.Parameter(convolution.weight.detach().permute(2, 3, 0, 1).clone())
    bias = nn.Parameter(convolution.bias.detach().clone())
    ours = build_optimizer({"unet": convolution}, settings_of("adafactor"))
    theirs = torch.optim.Adafactor([turned, bias], lr=0.01, weight_decay=0.1)
    for group in ours.param_groups:
        group.update(lr=0.01, weight_decay=0.1)

    def closure() -> float:
        ours.zero_grad()
        loss = convolution(torch.randn(2, 40, 5, 5)).square().mean()
        loss.backward()
        return loss.item()

    for _ in range(3):
        assert ours.step(closure) > 0  # as Lightning has it; gradients of the last step are there
        turned.grad = convolution.weight.grad.permute(2, 3, 0, 1).clone()
        bias.grad = convolution.bias.grad.clone()
        theirs.step()
    torch.testing.assert_close(convolution.weight, turned.permute(2, 3, 0, 1))
    assert convolution.weight.is_contiguous(memory_format=layout)
    assert convolution.weight.grad.shape == convolution.weight.shape
    kept = ours.state[convolution.weight]
    assert kept["row_var"].numel() + kept["col_var"].numel() == 9 * (40 + 60)
    ours.load_state_dict(ours.state_dict())
    plain = torch.optim.Adafactor(convolution.parameters())
    plain.step()
    with pytest.raises(UserError, match="start the run anew"):
        ours.load_state_dict({**ours.state_dict(), "state": plain.state_dict()["state"]})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_gradients_changes_nothing(name: str) -> None:
    modules = networks()
    optimizer = build_optimizer(modules, settings_of(name))
    step(modules, optimizer, 0)
    before = state(modules)
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, state(modules), strict=True))


def test_looking_at_averaged_weights_changes_nothing() -> None:
    modules = networks()
    optimizer = build_optimizer(modules, settings_of("schedule_free_adamw"))
    for number in range(3):
        step(modules, optimizer, number)
    before = state(modules)
    twin = copy.deepcopy(modules)
    with weights_to_look_at(optimizer):
        inside = state(modules)
    assert not any(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, state(modules), strict=True))
    assert all(group["train_mode"] for group in optimizer.param_groups)
    # the mean of z_1 .. z_3, which schedule-free averages, is what eval() alone would show
    other = build_optimizer(twin, settings_of("schedule_free_adamw"))
    other.load_state_dict(optimizer.state_dict())
    other.eval()  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(inside, state(twin), strict=True))


def test_looking_with_any_other_optimizer_is_looking_at_the_weights() -> None:
    modules = networks()
    optimizer = build_optimizer(modules, settings_of("adamw"))
    before = state(modules)
    with weights_to_look_at(optimizer):
        assert all(torch.equal(a, b) for a, b in zip(before, state(modules), strict=True))


def test_arguments_reach_the_optimizer_and_wrong_ones_are_named() -> None:
    modules = networks()
    made = build_optimizer(modules, settings_of("adamw", arguments={"eps": 0.5}))
    assert made.defaults["eps"] == 0.5 and made.defaults["fused"] is True
    assert build_optimizer(modules, settings_of("adamw", arguments={"foreach": True}))
    with pytest.raises(UserError, match=r"training\.optimizer_arguments=.*differentiable"):
        both = {"fused": True, "differentiable": True}
        build_optimizer(modules, settings_of("adamw", arguments=both))
    with pytest.raises(UserError, match=r"training\.optimizer_arguments=.*nonsense"):
        build_optimizer(modules, settings_of("lion", arguments={"nonsense": 1}))


def test_any_callable_makes_an_optimizer() -> None:
    modules = networks()
    own = settings_of("adamw", arguments={"momentum": 0.5})

    optimizer = build_optimizer(modules, replace(own, optimizer="SGD", custom=torch.optim.SGD))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.5


def test_rates_of_the_phases() -> None:
    settings = OptimizerSettings(
        1e-3, 20, text_encoder_learning_rate=5e-4, pivotal_learning_rate=1e-2, warmup=2
    )
    phases = Phases(pivotal=4, text_encoder_stop=10, tokens=[[3]])
    modules = networks()
    optimizer = build_optimizer(modules, settings, phases)
    schedule = build_schedule(optimizer, settings, phases)
    rates = []
    for _ in range(12):
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        schedule.step()
    assert rates[3] == {"unet": 0, "text_encoder": 0, "embedding": pytest.approx(1e-2)}
    half = {"unet": 5e-4, "text_encoder": 2.5e-4, "embedding": 2.5e-4}  # warm-up begins after it
    assert rates[4] == pytest.approx(half)
    assert rates[9] == pytest.approx({"unet": 1e-3, "text_encoder": 5e-4, "embedding": 5e-4})
    assert rates[10] == pytest.approx({"unet": 1e-3, "text_encoder": 0, "embedding": 0})
    assert group_factor("unet", 4, settings, phases) == 0.5
