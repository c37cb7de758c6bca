"""Out of memory: what was tried, and the three options that would help most, in order."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import Config, load_config, split_command_line
from ldm.run import trouble
from ldm.run.memory import prediction
from ldm.run.memory.prediction import GIB
from ldm.run.prepare import Prepared, prepare
from ldm.run.trouble import best_options, out_of_memory_message
from ldm.training import DreamBoothModule
from tests.workspace import Workspace

ERROR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.93 GiB."
)
HALF = "training.precision=bf16-mixed adapter.frozen=half"


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


def prepared(place: Workspace, *more: str, **settings: object) -> tuple[Config, Prepared]:
    words = place.words(*more, prior__batch=4, training__batch=8, **settings)
    config = load_config(*split_command_line(words[1:]))
    return config, prepare(config)


def shown(config: Config, ready: Prepared) -> list[str]:
    return [str(option) for option in best_options(config, ready)]


@pytest.fixture
def known_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of memory in which each option saves a known number of GiB."""

    def modelled(config: Config, ready: Prepared) -> int:
        training, model = config.training, config.model
        needed = 20.0 / training.accumulate
        needed += 0 if model.gradient_checkpointing else 5.0
        needed += {"fp32": 3.0, "bf16-mixed": 4.0 - 4.0}.get(training.precision, 0.0)
        needed += 2.0 if training.optimizer == "adamw" else 0.0
        needed += 5.0 if model.train_text_encoder else 0.0
        if config.adapter is None:
            needed += 6.5
        elif config.adapter.frozen == "full":
            needed += 2.5
        needed -= 6.0 if training.fused_backward else 0.0
        return int((needed + 30.0 * ready.resolution / 32) * GIB)

    monkeypatch.setattr(prediction, "memory_bytes", modelled)


def test_the_three_that_help_most(place: Workspace, known_memory: None) -> None:
    config, ready = prepared(place)
    assert shown(config, ready) == [
        "training.accumulate=4",  # 8 + 4 samples: 15 GiB
        "model.gradient_checkpointing=true",  # 5 GiB, and does less harm than the next
        "model.train_text_encoder=false",
    ]
    message = out_of_memory_message(config, ready, ERROR)
    lines = message.splitlines()
    assert "Tried to allocate 2.00 GiB" in lines[0]
    tried = "32 pixels, 8 pictures + 4 class images per forward pass, fp32, "
    assert lines[1] == f"  tried: {tried}UNet and text encoder trained with adamw"
    assert lines[2] == "  predicted: 71.50 GiB"
    assert [re.findall(r"([\d.]+) GiB less", line) for line in lines[4:7]] == [
        ["15.00"],
        ["5.00"],
        ["5.00"],
    ]
    assert lines[7] == "  with all of them: 46.50 GiB"
    assert "--resume does not take model.train_text_encoder=false" in lines[8]


def test_only_what_is_not_set_already(place: Workspace, known_memory: None) -> None:
    done = {"training__accumulate": 4, "model__gradient_checkpointing": "true"}
    config, ready = prepared(place, **done)
    assert shown(config, ready) == [
        "model.train_text_encoder=false",
        "configs/lora.yaml",
        "training.precision=bf16-mixed",
    ]
    done |= {"model__train_text_encoder": "false", "training__precision": "bf16-mixed"}
    config, ready = prepared(place, **done)
    smaller = f"data.resolution={ready.resolution * 3 // 4}"
    others = ["configs/lora.yaml", "training.optimizer=adamw_8bit"]
    assert shown(config, ready) == [*others, smaller], "the last resort"


def test_an_adapter_leaves_the_base_in_half_precision(place: Workspace, known_memory: None) -> None:
    done = {"training__accumulate": 4, "adapter__rank": 2, "model__train_text_encoder": "false"}
    config, ready = prepared(place, **done)
    message = out_of_memory_message(config, ready, ERROR)
    assert f"1. {HALF}: 5.50 GiB less" in message
    assert "lora of rank 2 in UNet trained with adamw" in message
    assert f"--resume does not take {HALF}, " in message
    config, ready = prepared(place, training__precision="bf16-mixed", **done)
    assert "adapter.frozen=half" in shown(config, ready)
    done |= {"training__precision": "bf16-mixed", "adapter__frozen": "half"}
    assert not {"adapter.frozen=half", "configs/lora.yaml"} & set(shown(*prepared(place, **done)))


def test_nothing_is_offered_that_would_be_refused(place: Workspace, known_memory: None) -> None:
    """A text encoder that is not trained cannot stop; 8 and 3 have no divisor."""
    config, ready = prepared(place, training__text_encoder_stop=0.5)
    assert "model.train_text_encoder=false" not in shown(config, ready)
    config.prior.batch = 3  # type: ignore[union-attr]
    assert not any("accumulate" in option for option in shown(config, ready))


def test_what_is_offered_goes_together(place: Workspace, known_memory: None) -> None:
    config, ready = prepared(place, training__gradient_clip="null")
    fused, passes = "training.fused_backward=true", "training.accumulate=4"
    assert passes in shown(config, ready) and fused not in shown(config, ready)
    config.prior.batch = 3  # type: ignore[union-attr]
    assert shown(config, ready)[0] == fused


@pytest.mark.parametrize(
    ("settings", "looked_at"),
    [
        ({}, ["configs/lora.yaml"]),
        (
            {"adapter__kind": "dora", "adapter__rank": 2, "training__pivotal": 0.5},
            ["model.train_text_encoder=false", HALF],
        ),
        (
            {"adapter__rank": 2, "adapter__frozen": "half", "training__precision": "bf16-mixed"},
            ["adapter.frozen=int8"],
        ),
        (
            {"training__precision": "bf16-mixed"},
            ["training.weights=bf16"],
        ),
    ],
)
def test_every_number_is_the_plans(
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    looked_at: list[str],
) -> None:
    """As --dry-run would show it with the option given."""
    monkeypatch.setattr(trouble, "GIB", 1)  # so small a model's savings are no GiB
    config, ready = prepared(place, prior__target="base", **settings)
    few = [option for option in trouble._options(config, ready) if str(option) in looked_at]
    monkeypatch.setattr(trouble, "_options", lambda *_: few)
    options = best_options(config, ready)
    assert sorted(map(str, options)) == sorted(looked_at)
    before = prediction.memory_bytes(config, ready)
    for option in options:
        given = prepared(place, *str(option).split(), prior__target="base", **settings)
        assert option.saved == before - prediction.memory_bytes(*given) > 0


def test_smaller_pictures_are_what_the_base_can_make(place: Workspace) -> None:
    config, ready = prepared(place)
    assert ready.base.multiple == 8
    for resolution, smaller in ((8, []), (16, [8]), (40, [24]), (64, [48])):
        options = trouble._options(config, replace(ready, resolution=resolution))
        found = [option.changes.get("data.resolution") for option in options]
        assert [value for value in found if value] == smaller


def raised_in(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except torch.OutOfMemoryError as error:
        return error
    raise AssertionError


def test_where_pictures_are_drawn_fewer_at_once_help(
    place: Workspace, known_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.sampling import generate, prior

    config, ready = prepared(place, prior__sampling_batch=6, sampling__batch=2)

    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(*ERROR.args)  # each has a traceback of its own

    monkeypatch.setattr(generate, "denoise", no_room)
    settings: dict[str, Any] = {"steps": 2, "height": 32, "width": 32}
    drawn = raised_in(lambda: list(generate.generate(ready.base, ["a"], [0], **settings)))
    assert "give sampling.batch=1" in out_of_memory_message(config, ready, drawn)
    sampling = prior.class_image_settings(0, 5.0, 2, "dpmpp_2m", 32)
    maker = prior.ClassImageMaker(ready.base, "a dog", sampling)
    made = raised_in(lambda: prior.make_class_images(maker, 1, place.folder))
    assert "give prior.sampling_batch=3" in out_of_memory_message(config, ready, made)


def test_main_says_it_with_status_2(
    place: Workspace,
    known_memory: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = DreamBoothModule.training_step

    def training_step(module: DreamBoothModule, batch: Any, batch_idx: int) -> Any:
        if batch[0]["step"] == 1:
            raise torch.OutOfMemoryError(*ERROR.args)  # each has a traceback of its own
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DreamBoothModule, "training_step", training_step)
        assert place.main("--name", "small", training__steps=3) == 2
    said = capsys.readouterr().err
    assert said.count("error: out of memory while training") == 1 and "Traceback" not in said
    assert "training.accumulate=2" in said or "gradient_checkpointing=true" in said
