"""Predicted memory: against the allocations that the profiler sees in a real step."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.config import load_config
from ldm.models.adapters import Adapter
from ldm.models.base import BaseModel, frozen_copy, load_base
from ldm.models.precision import autocast
from ldm.models.trainable import prepare_training
from ldm.models.unet import predict
from ldm.run.memory import prediction
from ldm.run.memory.watermark import (
    LIBRARIES,
    Pass,
    Stepping,
    Watermark,
    drawing_bytes,
    step_all,
    training_need,
)
from ldm.run.prepare import prepare
from ldm.training.adafactor import Adafactor
from ldm.training.alone import SteppedAlone
from ldm.training.optim import PACKAGES, OptimizerSettings, make_optimizer
from tests.conftest import TINY_RESOLUTION
from tests.workspace import MAIN_JOB, Workspace

PROMPTS = ["a dog", "a robot", "a dog", "the beach"]
Base = Callable[[str], Path]


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that real tensors take at once beside those that were there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        work()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def weights_of(base: BaseModel) -> int:
    parts: list[nn.Module] = [base.vae, *base.networks.values()]
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_watermark_counts_what_lives_at_once() -> None:
    before = torch.empty(10)
    with Watermark([before]) as mark:
        first = torch.empty(100)
        second = first.view(10, 10)  # the same memory
        third = second + 1
        del first, second
        torch.empty(50)
    assert mark.peak == 40 + 400 + 400 and mark.now == 40 + 400
    del third
    assert mark.now == 40 == before.nbytes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_takes_what_was_predicted(
    tiny_base_folder: Base, checkpointing: bool
) -> None:
    base = load_base(tiny_base_folder("eps"))

    def asked(base: BaseModel, adapters: Mapping[str, Adapter]) -> dict[str, nn.Module]:
        return prepare_training(base, True, checkpointing, adapters=adapters)

    one = Pass(PROMPTS, taught=0, resolution=4 * TINY_RESOLUTION, precision="fp32")
    need = training_need(base, {}, asked, one)
    asked(base, {})
    side = one.resolution // base.latent_factor
    noisy, t = torch.randn(4, 4, side, side), torch.zeros(4, dtype=torch.long)

    def step() -> None:
        with autocast(torch.device("cpu"), "fp32"):
            made = predict(base.unet, noisy, t, base.text.encode(PROMPTS, "cpu"), None)
        (made - noisy).pow(2).mean().backward()

    step()  # whatever is made once
    for network in base.networks.values():
        network.zero_grad()
    found = weights_of(base) + most_allocated(step)
    assert need.peak - LIBRARIES == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", list(prediction.OPTIMIZER_BYTES))
def test_an_optimizer_takes_and_keeps_what_is_counted(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name].replace("-", "_"))
    if name == "paged_adamw_8bit":
        pytest.skip("pages are CUDA's")
    shapes = [(300, 100, 3, 3), *[(300, 100)] * 20]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    settings = OptimizerSettings(1.0, 10, optimizer=name)
    optimizer = make_optimizer([{"params": parameters, "lr": 1.0, "name": "unet"}], settings)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    if callable(train := getattr(optimizer, "train", None)):
        train()
    optimizer.step()
    counts = [parameter.numel() for parameter in parameters]
    there = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in there if isinstance(value, torch.Tensor))
    assert kept / sum(counts) == pytest.approx(prediction.optimizer_bytes(name), abs=0.2)
    most = sum(counts) if name in prediction.ALL_AT_ONCE else max(counts)
    copies = prediction.STEP_COPIES.get(name, 0) + prediction.STEP_COPIES_ON_CPU.get(name, 0)
    assert most_allocated(optimizer.step) / (4 * most) == pytest.approx(copies, abs=0.3)


def test_adamw_with_a_gradient_scaler_takes_a_copy_of_all(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not fused on a GPU, it steps in lists of parameters: one list of square roots."""

    def need(precision: str) -> int:
        words = place.words(training__precision=precision, training__batch=1, prior="null")
        config = load_config([MAIN_JOB], words[2:])
        ready = prepare(config)
        with monkeypatch.context() as patch:
            patch.setattr(prediction, "kind_of_device", lambda config: "cuda")
            return prediction.memory_bytes(config, ready)

    base = load_base(place.base)
    trained = sum(p.numel() for net in base.networks.values() for p in net.parameters())
    assert need("16-mixed") - need("bf16-mixed") == pytest.approx(4 * trained, rel=0.2)


def test_a_step_in_bfloat16_takes_what_is_counted(tiny_base_folder: Base) -> None:
    """With the gradients that are not stepped yet; of steps in the backward pass as well."""
    weights = [nn.Parameter(torch.randn(400, 100).bfloat16()) for _ in range(4)]
    optimizer = Adafactor(weights, lr=1e-3)
    stepped = SteppedAlone(optimizer, 0)

    def step(number: int) -> None:
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        stepped.step_all(number)

    step(0)
    each = weights[0].numel()
    counted = Stepping(prediction.STEP_COPIES["adafactor"] + prediction.AS_FLOAT32, alone=True)
    with Watermark() as mark:
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        step_all(counted, weights)
    assert most_allocated(lambda: step(1)) == pytest.approx(mark.peak, abs=0.5 * 4 * each)
    assert all(weight.grad is None for weight in weights)


def test_drawing_takes_what_was_predicted(tiny_base_folder: Base) -> None:
    base, side = load_base(tiny_base_folder("eps")), TINY_RESOLUTION  # weights would show

    @torch.no_grad()
    def draw() -> None:
        noise = torch.randn(4, 4, side // base.latent_factor, side // base.latent_factor)
        text = base.text.encode(["a dog", "", "the beach", "a"], "cpu")
        clean = predict(base.unet, noise, 0, text, None)
        base.vae.decode(clean[:2])

    draw()
    predicted = drawing_bytes(base, side, batch=2, guided=True)
    assert predicted == pytest.approx(most_allocated(draw), rel=0.1)
    assert drawing_bytes(base, side, batch=2, guided=False) < predicted


@pytest.mark.parametrize("shared", ["vae", "text_encoder"])
def test_what_a_frozen_copy_shares_counts_once(tiny_base_folder: Base, shared: str) -> None:
    base = load_base(tiny_base_folder("eps"))
    one = Pass(PROMPTS, 2, TINY_RESOLUTION, "fp32")

    def held(teacher: BaseModel) -> int:
        def prepare(model: BaseModel, _: Mapping[str, Adapter]) -> Mapping[str, nn.Module]:
            return prepare_training(model, False, False)

        return training_need(base, {}, prepare, one, teacher=teacher).held

    part: nn.Module = getattr(base, shared)
    tensors = (*part.parameters(), *part.buffers())
    saved = held(frozen_copy(base)) - held(frozen_copy(base, [shared]))
    assert saved == sum(tensor.nbytes for tensor in tensors)


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Base) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


def test_every_option_moves_the_prediction(place: Workspace) -> None:
    def need(**settings: object) -> int:
        settings = {"data__resolution": 128, "training__precision": "fp32"} | settings
        config = load_config([MAIN_JOB], place.words(**settings)[2:])
        return prediction.memory_bytes(config, prepare(config))

    usual = need()
    assert need(training__batch=4) > usual > need(prior="null")
    assert need(training__accumulate=2) < usual
    assert need(model__gradient_checkpointing="true") < usual
    assert need(model__train_text_encoder="false") < usual
    assert need(training__precision="bf16-mixed") < usual
    assert need(data__resolution=160) > usual
    copied = need(prior__target="base")  # a copy of the base
    assert copied > usual
    lora = {"adapter__rank": 2}
    assert need(**lora, prior__target="base") - need(**lora) < 0.5 * (copied - usual)
    for kind in ("lora", "loha", "lokr"):
        assert need(adapter__kind=kind) < usual
    assert need(training__optimizer="adamw_8bit") < usual < need(ema__schedule="power")


def test_a_device_that_is_too_small_is_told_before_any_work(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--dry-run") == 0
    assert "NOT ENOUGH" not in capsys.readouterr().out
    monkeypatch.setattr(prediction, "device_bytes", lambda config: LIBRARIES)
    assert place.main("--dry-run") == 0
    said = capsys.readouterr().out
    assert "of 0.5 in this machine" in said
    assert "NOT ENOUGH to train" in said and "lower sampling.batch" in said
