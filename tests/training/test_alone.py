"""One parameter at a time: rounding by chance, and steps within the backward pass."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from ldm.config import load_config
from ldm.errors import UserError
from ldm.run.memory import prediction
from ldm.run.prepare import prepare
from ldm.training.alone import FusedBackward, SteppedAlone, round_stochastically
from tests.workspace import MAIN_JOB, Workspace, difference, weights

UP = 2**-7  # of bfloat16, the next number after 1 is 1 + UP; the one before, 1 - UP / 2


def test_rounding_is_up_as_often_as_the_value_is_near() -> None:
    values = torch.full((100_000,), 1 + UP / 4)
    rounded = round_stochastically(values, 1).float()
    assert set(rounded.unique().tolist()) == {1, 1 + UP}
    assert (rounded > 1).float().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(round_stochastically(-values, 1).float(), -rounded)
    assert torch.equal(round_stochastically(values, 1).float(), rounded)
    assert not torch.equal(round_stochastically(values, 2).float(), rounded)
    fitting = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(fitting.float(), 3), fitting)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adafactor])
def test_a_rate_below_the_last_place_moves_the_mean_as_in_float32(
    kind: Callable[..., torch.optim.Optimizer],
) -> None:
    def mean_after(dtype: torch.dtype, alone: bool) -> float:
        weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
        optimizer = kind([weight], lr=1e-4, weight_decay=0)
        stepped = SteppedAlone(optimizer, seed=0)
        for number in range(100):
            weight.grad = torch.ones_like(weight)
            if alone:
                stepped.step(weight, number)
            else:
                optimizer.step()
        return float(weight.detach().float().mean())

    moved = 1 - mean_after(torch.float32, alone=False)
    assert moved > 0 and mean_after(torch.float32, alone=True) == 1 - moved
    assert mean_after(torch.bfloat16, alone=False) == 1, "to the nearest: it stands still"
    assert 1 - mean_after(torch.bfloat16, alone=True) == pytest.approx(moved, rel=0.1)


def test_a_loss_that_is_not_finite_steps_nothing() -> None:
    layer = nn.Linear(3, 3)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    alone = SteppedAlone(torch.optim.AdamW(layer.parameters(), lr=0.1), seed=0)
    fused = FusedBackward(alone, layer.parameters(), lambda: 4)

    def backward(loss: torch.Tensor) -> torch.Tensor:
        fused.begin(loss)
        loss.backward()
        assert all(parameter.grad is None for parameter in layer.parameters())
        return fused.norm()

    assert backward(layer(torch.ones(2, 3)).sum() * torch.nan).isnan()
    unmoved = zip(before, layer.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in unmoved)
    assert backward(layer(torch.ones(2, 3)).sum()) == pytest.approx((9 * 4 + 3 * 4) ** 0.5)
    moved = zip(before, layer.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in moved)
    with pytest.raises(UserError, match=r"step 5: .*training\.fused_backward=false"):
        backward((layer(torch.zeros(2, 3)) - layer.bias).sum().abs().sqrt())  # infinite at 0


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("alone"), tiny_base_folder("eps"))


BF16: dict[str, object] = {"training__weights": "bf16", "training__precision": "bf16-mixed"}


def norms(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["grad_norm"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("optimizer", "more"), [("adamw", {}), ("adafactor", BF16)])
def test_within_the_backward_pass_the_numbers_are_the_same(
    place: Workspace, optimizer: str, more: dict[str, object]
) -> None:
    settings = {"training__optimizer": optimizer, "training__gradient_clip": "null", **more}
    settings |= {"model__gradient_checkpointing": "true"}
    apart = place.train(f"apart-{optimizer}", **settings)
    settings |= {"training__fused_backward": "true"}
    fused = place.train(f"fused-{optimizer}", **settings)
    for part in ("unet", "text_encoder"):
        assert difference(apart, fused, part=part) == 0
    assert norms(fused) == pytest.approx(norms(apart), rel=1e-5)


def test_weights_in_bfloat16_go_on_bit_for_bit(place: Workspace) -> None:
    settings = {**BF16, "ema__schedule": "power", "samples__every": 2}
    straight = place.train("straight", **settings)
    run = place.train("resumed", training__steps=1, **settings)
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    for part in ("unet", "text_encoder", "unet.ema"):
        assert difference(straight, run, part=part) == 0
    assert {tensor.dtype for tensor in weights(run, 2).values()} == {torch.bfloat16}
    ends = [
        torch.load(one / "resume.ckpt")["optimizer_states"][0]["state"] for one in (straight, run)
    ]
    for number, state in ends[0].items():
        for name, value in state.items():
            assert value.dtype == torch.float32 and torch.equal(value, ends[1][number][name])
    assert difference(straight, place.train("other", seed=1, **settings)) > 0


def test_less_memory_is_predicted(place: Workspace) -> None:
    def need(**settings: object) -> int:
        settings |= {"training__precision": "bf16-mixed", "training__gradient_clip": "null"}
        settings |= {"training__batch": 1, "prior": "null"}  # little beside weights
        settings |= {"model__gradient_checkpointing": "true"}
        config = load_config([MAIN_JOB], place.words(**settings)[2:])
        return prediction.memory_bytes(config, prepare(config))

    usual = need()
    assert need(training__fused_backward="true") < usual > need(training__weights="bf16")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {
                "training__fused_backward": "true",
                "training__accumulate": 2,
                "training__pivotal": 0.5,
                "training__optimizer": "prodigy",
                "training__precision": "16-mixed",
                "trainer__strategy": "ddp",
            },
            ("gradient_clip=1.0", "accumulate=2", "pivotal=0.5", "optimizer=prodigy", "16-mixed")
            + ("trainer.devices=1",),
        ),
        (
            {**BF16, "adapter__rank": 2, "training__precision": "fp32"},
            ("adapter", "precision=fp32"),
        ),
        ({"training__weights": "bf16", "training__precision": "auto"}, ("is fp32 on this device",)),
        ({"training__optimizer": "paged_adamw_8bit"}, ("this run is on cpu; take adamw_8bit",)),
    ],
    ids=["fused", "adapter", "device", "paged"],
)
def test_what_they_do_not_go_with_is_named(
    place: Workspace,
    settings: dict[str, object],
    named: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ldm.run.device.native_precision", lambda device: "fp32")
    assert place.main(**settings) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in named), said
