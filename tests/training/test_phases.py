"""Which parts are trained at which step, through the module and Lightning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ldm.training import Average
from ldm.training.module import DreamBoothModule
from ldm.training.phases import Phases, annealed, keep_rows_only
from tests.torture import unequal
from tests.training.job import build_module, train

BaseFolder = Callable[[str], Path]


class Watch(pl.Callback):
    """The state dict after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.note(pl_module)

    def note(self, module: pl.LightningModule) -> None:
        self.states.append({key: value.clone() for key, value in module.state_dict().items()})

    def moved(self, step: int) -> set[str]:
        """The parameters that step 0, 1, ... changed."""
        before, after = self.states[step : step + 2]
        return {key for key in before if not torch.equal(before[key], after[key])}


def watched(
    base: Path, folder: Path, steps: int, phases: dict[str, Any], **options: Any
) -> tuple[DreamBoothModule, Watch]:
    watch = Watch()
    module, _, _ = train(
        folder, base, steps, accumulate=1, extra=(watch,), phases=phases, **options
    )
    return module, watch


def embedding_key(module: DreamBoothModule) -> str:
    (key,) = [key for key in module.state_dict() if key.endswith("token_embedding.weight")]
    return key


def test_shares_of_the_steps() -> None:
    phases = Phases.of_shares(10, 0.25, 0.5, [[4]])
    assert (phases.pivotal, phases.text_encoder_stop, phases.change) == (3, 5, True)
    assert not Phases.of_shares(10, 0.0, 1.0, []).change
    assert Phases.of_shares(100, 0.07, 0.55, []) == Phases(7, 55)
    groups = ("unet", "text_encoder", "embedding")
    trained = [[g for g in groups if phases.trains(g, step)] for step in (2, 3, 4, 5)]
    assert trained == [["embedding"], list(groups), list(groups), ["unet"]]


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {"arguments": {"min_8bit_size": 16}},
    "lion": {},
    "schedule_free_adamw": {},
    "prodigy": {
        "learning_rate": 1.0,
        "text_encoder_learning_rate": 1.0,
        "pivotal_learning_rate": 0.5,
        "arguments": {"d0": 1e-3},
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_the_identifiers_row_alone(
    tiny_base_folder: BaseFolder, tmp_path: Path, name: str
) -> None:
    base = tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    phases = {"pivotal": 2, "tokens": [rows]}
    optimizer = {"weight_decay": 0.1, "optimizer": name, **OPTIMIZERS[name]}
    module, watch = watched(base, tmp_path, 4, phases, optimizer=optimizer)
    key = embedding_key(module)
    for step in (0, 1):
        assert watch.moved(step) == {key}
        change = (watch.states[step][key] != watch.states[step + 1][key]).any(1)
        assert change.nonzero().flatten().tolist() == rows
    assert {name.split(".")[1] for name in watch.moved(2)} == {"unet", "text_encoder"}
    assert len(watch.moved(3)) > len(watch.states[0]) / 2


def test_the_average_of_a_schedule_free_optimizer_keeps_the_other_rows(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    optimizer = {"weight_decay": 0.1, "optimizer": "schedule_free_adamw", "schedule": "constant"}
    module, watch = watched(
        base, tmp_path, 4, {"pivotal": 4, "tokens": [rows]}, optimizer=optimizer
    )
    module.let_optimizer("eval")
    key = embedding_key(module)
    change = (watch.states[0][key] != module.state_dict()[key]).any(1)
    assert change.nonzero().flatten().tolist() == rows


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw", "prodigy"])
def test_what_follows_begins_with_a_fresh_optimizer(
    tiny_base_folder: BaseFolder, tmp_path: Path, name: str
) -> None:
    """The first step of all is one of the size that it has without the steps before it."""
    base = tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    optimizer = {**OPTIMIZERS[name], "optimizer": name, "schedule": "constant", "warmup": 0}
    sizes = []
    for pivotal in (0, 6):
        phases = {"pivotal": pivotal, "tokens": [rows]}
        _, watch = watched(base, tmp_path / str(pivotal), pivotal + 1, phases, optimizer=optimizer)
        before, after = watch.states[-2:]
        unet = [key for key in before if "unet" in key]
        sizes.append(max(float((before[key] - after[key]).abs().max()) for key in unet))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_the_row_alone_and_then_the_unet_alone(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("eps")
    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    phases = {"pivotal": 1, "tokens": [rows], "text_encoder_stop": 0}
    module, watch = watched(base, tmp_path, 3, phases, text_encoder=False)
    assert watch.moved(0) == {embedding_key(module)}
    for step in (1, 2):
        assert {name.split(".")[1] for name in watch.moved(step)} == {"unet"}


def test_the_text_encoder_stops(tiny_base_folder: BaseFolder, tmp_path: Path) -> None:
    phases = {"text_encoder_stop": 2}
    module, watch = watched(
        tiny_base_folder("eps"), tmp_path, 4, phases, optimizer={"weight_decay": 0.1}
    )
    for step in (0, 1):
        assert any("text_encoder" in name for name in watch.moved(step))
    for step in (2, 3):
        assert {name.split(".")[1] for name in watch.moved(step)} == {"unet"}
    assert module._embeddings, "a text encoder at rest encodes each prompt once"


def test_embeddings_of_a_stopped_text_encoder_are_its_last_ones(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    module, _ = watched(tiny_base_folder("eps"), tmp_path, 3, {"text_encoder_stop": 2})
    prompt, kept = next(iter(module._embeddings.items()))
    fresh = build_module(tiny_base_folder("eps"))
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh.encode([prompt]).states, kept.states)
    untrained = build_module(tiny_base_folder("eps")).encode([prompt])
    assert not torch.allclose(untrained.states, kept.states)


def test_a_stopped_text_encoder_is_the_one_that_will_be_used(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    """A schedule-free optimizer's average, not the point that it trained at; for good."""
    optimizer = {"optimizer": "schedule_free_adamw", "schedule": "constant"}
    phases = {"text_encoder_stop": 2}
    module, watch = watched(tiny_base_folder("eps"), tmp_path, 4, phases, optimizer=optimizer)
    assert any("text_encoder" in name for name in watch.moved(2)), "from y to x"
    assert {name.split(".")[1] for name in watch.moved(3)} == {"unet"}
    module.let_optimizer("eval")
    text = {key: value for key, value in module.state_dict().items() if "text_encoder" in key}
    assert not list(unequal({key: watch.states[3][key] for key in text}, text, "result"))
    prompt, kept = next(iter(module._embeddings.items()))
    fresh = build_module(tiny_base_folder("eps"))
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh.encode([prompt]).states, kept.states)


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_an_average_without_memory_is_the_result(
    tiny_base_folder: BaseFolder, tmp_path: Path, optimizer: str
) -> None:
    average: list[Average] = []

    class Instant(pl.Callback):
        def on_train_start(self, trainer: Any, *_: Any) -> None:
            average.extend(one for one in trainer.callbacks if isinstance(one, Average))
            average[0].average.decay = 0.0

    settings = {"optimizer": optimizer, "schedule": "constant"}
    base = tiny_base_folder("eps")
    module, _, _ = train(tmp_path, base, 3, ema=True, extra=(Instant(),), optimizer=settings)
    module.let_optimizer("eval")
    found = average[0].state_dict()["average"]
    for name, part in module.trained.items():
        wanted = {key: value.detach() for key, value in part.named_parameters()}
        assert not list(unequal(wanted, found[name], name))


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (2, 0.75), (4, 0.5), (9, 0.5)])
def test_an_annealed_weight(step: int, weight: float) -> None:
    assert annealed(1.0, 0.5, step, 5) == pytest.approx(weight)
    assert annealed(0.7, None, step, 5) == 0.7


def test_only_the_rows_keep_their_gradient() -> None:
    gradient = torch.arange(8.0).reshape(4, 2) + 1
    keep_rows_only(gradient, [2])
    assert gradient.tolist() == [[0, 0], [0, 0], [5, 6], [0, 0]]
