"""Drawing with one network on the device at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.models.base import load_base
from ldm.run import memory
from ldm.run.memory import place_to_draw
from ldm.run.watermark import drawing_bytes, weights_bytes
from ldm.sampling.generate import generate

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {"steps": 2, "height": 32, "width": 32}
Folder = Callable[[str], Path]


@pytest.mark.parametrize("kind", ["eps", "sdxl"])
def test_the_pictures_are_the_same_and_one_network_is_there_at_a_time(
    tiny_base_folder: Folder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.hooks import CpuOffload

    usual = list(
        generate(load_base(tiny_base_folder(kind)), ["a dog", "a robot"], [0, 1], **SETTINGS)
    )
    base = load_base(tiny_base_folder(kind))
    place_to_draw(base, CPU, 32, 2, True, "small")
    assert base.device == CPU
    called: list[str] = []
    names = {id(net): name for name, net in {**base.networks, "vae": base.vae}.items()}
    before = CpuOffload.pre_forward

    def pre_forward(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(names[id(module)])
        return before(self, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    drawn = list(generate(base, ["a dog", "a robot"], [0, 1], **SETTINGS))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(drawn, usual, strict=True))
    encoders = [name for name in base.networks if name != "unet"]
    assert list(dict.fromkeys(called)) == [*encoders, "unet", "vae"]
    assert base.vae.use_slicing and base.vae.use_tiling


@pytest.mark.parametrize(("spare", "small"), [(1, False), (-1, True)])
def test_what_is_free_decides(
    tiny_base_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spare: int,
    small: bool,
) -> None:
    base = load_base(tiny_base_folder("eps"))
    needed = weights_bytes(base) + drawing_bytes(base, 32, 2, True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed + spare)
    with caplog.at_level("INFO", logger="ldm"):
        place_to_draw(base, CPU, 32, 2, True, "auto")
    assert hasattr(base.unet, "_hf_hook") == small
    assert ("GiB are needed and" in caplog.text) == small
