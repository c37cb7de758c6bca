"""torch.compile of the UNet's blocks: when, what it changes, and how they are looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm.models.base import load_base
from ldm.models.modes import in_eval_mode
from ldm.training import CompiledBlocks, compiled
from tests.workspace import Workspace, difference


class Runs:
    """A run whose steps take `seconds` each; which of them were compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path, seconds: float) -> None:
        self.run, self.clock, self.seconds = run, 0.0, seconds
        self.is_compiled = False
        monkeypatch.setattr("time.perf_counter", lambda: self.clock)
        monkeypatch.setattr(compiled, "compile_blocks", self._compile)

    def _compile(self, unet: nn.Module) -> int:
        self.is_compiled = True
        return 1

    def steps(self, first: int, last: int, most: int, always: bool = False) -> list[int]:
        """Those that were taken compiled, of a process that goes on after step `first`."""
        self.is_compiled, taken = False, []
        callback = CompiledBlocks(self.run, always, warm=5)
        strategy = SimpleNamespace(broadcast=lambda value: value)
        trainer = SimpleNamespace(
            global_step=first, max_steps=most, strategy=strategy, is_global_zero=True
        )
        module = SimpleNamespace(device=torch.device("cpu"), trained={"unet": None})
        callback.on_train_start(trainer, module)  # type: ignore[arg-type]
        for step in range(first + 1, last + 1):
            if self.is_compiled:
                taken.append(step)
            self.clock += self.seconds
            callback.on_step(trainer, module, step)  # type: ignore[arg-type]
        return taken


def test_a_long_run_is_compiled_and_goes_on_as_it_went(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ldm")
    runs = Runs(monkeypatch, tmp_path, 20.0)
    assert runs.steps(0, 14, most=1000) == [10, 11, 12, 13, 14]  # steps 6 to 9 were timed
    assert "991 steps of 20 s are left" in caplog.text and "would save about 396 s" in caplog.text
    assert runs.steps(7, 12, most=1000) == [10, 11, 12]
    assert runs.steps(12, 14, most=1000) == [13, 14]
    runs.seconds = 0.01  # on whatever clock
    assert runs.steps(0, 12, most=1000) == [10, 11, 12]


def test_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = Runs(monkeypatch, tmp_path, 2.0)
    assert runs.steps(0, 30, most=100) == []
    assert json.loads((tmp_path / "compile.json").read_text())["from_step"] is None
    assert runs.steps(10, 30, most=10_000) == [], "as it was begun"
    assert runs.steps(0, 3, most=100, always=True) == [1, 2, 3]


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_steps_learn_the_same_and_are_looked_at_as_written(
    tiny_base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """By the true compiler: two steps, and a grid of the same pictures after each."""
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    settings = {"samples__every": 1, "training__learning_rate": 1e-5}
    plain = place.train("plain", training__compile="never", **settings)
    quick = place.train("quick", training__compile="always", **settings)
    far = difference(plain, quick)
    assert 0 < far < 1e-5, "rounding, and no more; none at all would be the same code"
    for step in (0, 1, 2):
        grids = [Image.open(r / "samples" / f"step-{step:06d}.png") for r in (plain, quick)]
        first, second = (torch.from_numpy(np.asarray(grid).astype(int)) for grid in grids)
        assert (first - second).abs().max() <= 2


def test_what_is_only_looked_at_is_not_compiled(tiny_base_folder: Callable[[str], Path]) -> None:
    unet = load_base(tiny_base_folder("eps")).unet
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        calls.append(len(inputs))
        return graph.forward

    blocks = [b for b in unet.modules() if type(b).__name__ == "BasicTransformerBlock"]
    keys = unet.state_dict().keys()
    for block in blocks:
        block.compile(backend=backend)
    assert unet.state_dict().keys() == keys
    given = torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 7, unet.config["cross_attention_dim"])
    with in_eval_mode(unet):
        looked_at = unet(*given).sample
    assert not calls
    with torch.no_grad():
        assert torch.allclose(unet.eval()(*given).sample, looked_at, atol=1e-5)
    assert calls
