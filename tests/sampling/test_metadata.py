"""A picture carries its settings, in both chunks."""

from pathlib import Path

import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.sampling.metadata import parameters_text, png_info, read_settings

SETTINGS = {
    "prompt": "a drawing of sks robot, 写真, seed: 3",
    "negative": "snow\nrain",
    "steps": 25,
    "sampler": "dpmpp_2m_karras",
    "scale": 5.0,
    "rescale": 0.0,
    "seed": 2**63 + 1,
    "width": 64,
    "height": 32,
    "model": "data/base: old, new",
    "fingerprint": "0123456789abcdef",
}


def test_round_trip(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=png_info(SETTINGS))
    settings = read_settings(tmp_path / "a.png")
    assert SETTINGS.items() <= settings.items()
    assert {"torch", "diffusers", "transformers"} <= settings["versions"].keys()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["parameters"] == parameters_text(SETTINGS)


def test_parameters_as_other_tools_read_them() -> None:
    assert parameters_text(SETTINGS).split("\n") == [
        "a drawing of sks robot, 写真, seed: 3",
        "Negative prompt: snow",
        "rain",
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 5.0, Seed: 9223372036854775809, "
        'Size: 64x32, Model hash: 0123456789, Model: "data/base: old, new"',
    ]
    assert parameters_text({"prompt": "a dog", "negative": "", "steps": 2}) == "a dog\nSteps: 2"


def test_pictures_without_settings(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "plain.jpg"):
        with pytest.raises(UserError, match="holds no settings"):
            read_settings(tmp_path / name)
    for name in ("text.png", "missing.png"):
        with pytest.raises(UserError, match="cannot be read"):
            read_settings(tmp_path / name)


def test_lora_and_clip_skip_as_other_tools_read_them() -> None:
    told = {"prompt": "a dog", "steps": 2, "clip_skip": 1, "lora": ["my/a:b.safetensors:0.8"]}
    assert parameters_text(told) == "a dog <lora:a:b:0.8>\nSteps: 2, Clip skip: 2"
    assert parameters_text({"prompt": "a dog", "steps": 2, "clip_skip": 0}) == "a dog\nSteps: 2"
