"""Drawing with one network on the device at a time."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.models.base import load_base
from ldm.models.quantised import Bits, saved_bytes
from ldm.run.memory import placing
from ldm.run.memory.placing import (
    Drawing,
    Way,
    bytes_to_draw,
    check_package,
    choose_way,
    place_to_draw,
)
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
    place_to_draw(base, CPU, Drawing(32, 2, True), "small")
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


def test_the_first_way_that_fits_is_taken(
    tiny_base_folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base, gpu = load_base(tiny_base_folder("eps")), torch.device("cuda")
    ways = [Way(False), Way(True), Way(True, "int8"), Way(True, "nf4")]
    drawing = Drawing(pixels=32, batch=1, guided=True)
    stages = {"text_encoder": 0, "unet": 2**22, "vae": 0}
    monkeypatch.setattr(placing, "drawing_stages", lambda *_: stages)
    needs = [bytes_to_draw(base, gpu, stages, way) for way in ways]
    assert needs == sorted(needs, reverse=True) and len({*needs}) == len(needs)
    free = [0]
    monkeypatch.setattr(placing, "free_bytes", lambda device: free[0])
    with caplog.at_level("INFO", logger="ldm"):
        for way, need in zip(ways, needs, strict=True):
            free[0] = need
            caplog.clear()
            assert choose_way(base, gpu, drawing, "auto") == way
            assert ("one network at a time is on cuda" in caplog.text) == way.small
            assert ("weights in" in caplog.text) == (way.quantized is not None)
        free[0] = needs[-1] - 1
        assert choose_way(base, gpu, drawing, "small") == ways[-1]
        assert "may still not fit" in caplog.text
    assert choose_way(base, gpu, drawing, "auto", "int8") == ways[2]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_way(base, gpu, drawing, "auto") == ways[2], "int8 needs no package"
    check_package("int8")
    with pytest.raises(UserError, match="--quantize nf4 needs the package bitsandbytes"):
        check_package("nf4")


@pytest.mark.parametrize(
    ("how", "kept", "dtype"), [("int8", 1, torch.int8), ("nf4", 2, torch.uint8)]
)
def test_a_quantised_unet_draws_about_the_same(how: Bits, kept: int, dtype: torch.dtype) -> None:
    folder = Path(__file__).parents[2] / "data" / "storybook-sd"
    settings: dict[str, Any] = {"steps": 4, "scale": 3.0}
    prompts = ["a drawing of a red dog in the snow"]
    exact = pixels(generate(load_base(folder), prompts, [1], **settings))
    other = pixels(generate(load_base(folder), prompts, [2], **settings))
    base = load_base(folder)
    linear = base.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    count, predicted = linear.weight.numel(), saved_bytes(linear, how)
    place_to_draw(base, CPU, Drawing(64, 1, True), "small", how)
    layer = base.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    packed, scale = layer.packed, layer.scale
    assert packed.dtype is dtype and packed.numel() * kept == count
    assert 4 * count - predicted == packed.nbytes + scale.nbytes
    assert base.unet.conv_in.weight.dtype is base.unet.dtype is torch.float32
    drawn = pixels(generate(base, prompts, [1], **settings))
    assert 0 < np.abs(drawn - exact).mean() < 0.2 * np.abs(other - exact).mean()


def pixels(pictures: Iterator[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])
