"""SDXL pictures equal to diffusers' own, and exported ones too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.export import export_folder
from ldm.models.base import BaseModel, load_base
from ldm.sampling.generate import generate, initial_noise
from ldm.sampling.samplers import make_sampler

TinyFolder = Callable[[str], Path]
PROMPTS = ["a drawing of sks robot on the beach", "a photo of the dog"]
SEEDS = [7, 0]
STEPS = 4


@pytest.fixture(scope="module")
def base(tiny_base_folder: TinyFolder) -> BaseModel:
    """Weights that are not the folder's, as if trained."""
    base = load_base(tiny_base_folder("sdxl"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for network in base.networks.values():
            for weight in network.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=draw))
    return base


@pytest.fixture(scope="module")
def exported(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_folder(base, tmp_path_factory.mktemp("sdxl") / "export", torch.float32, {})


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(exported, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(base: BaseModel, **settings: Any) -> np.ndarray:
    made = generate(base, PROMPTS, SEEDS, steps=STEPS, sampler="euler", **settings)
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in made])


@pytest.mark.parametrize("negative", ["", "snow"])
@pytest.mark.parametrize(
    "scale, rescale, size", [(5.0, 0.0, (32, 32)), (7.5, 0.7, (32, 40)), (1.0, 0.0, (40, 32))]
)
def test_same_as_diffusers_pipeline(
    base: BaseModel,
    pipeline: Any,
    negative: str,
    scale: float,
    rescale: float,
    size: tuple[int, int],
) -> None:
    height, width = size
    pipeline.scheduler = make_sampler("euler", base.scheduler)
    theirs = pipeline(
        PROMPTS,
        negative_prompt=[negative] * 2 if negative else None,
        latents=initial_noise(SEEDS, (4, height // 4, width // 4)),
        num_inference_steps=STEPS,
        guidance_scale=scale,
        guidance_rescale=rescale,
        height=height,
        width=width,
        output_type="np",
    ).images
    own: dict[str, Any] = {"height": height, "width": width, "negative": negative}
    ours = pictures(base, scale=scale, rescale=rescale, **own)
    assert np.abs(ours - theirs * 255).max() <= 1
    if scale > 1 and negative:
        assert np.abs(pictures(base, scale=scale, rescale=rescale) - ours[:, :32, :32]).max() > 1


def test_a_pictures_batch_does_not_show(base: BaseModel) -> None:
    one, two = pictures(base, batch=1), pictures(base, batch=2)
    assert np.abs(one - two).max() <= 1


def test_an_export_loads_back_bit_for_bit(base: BaseModel, exported: Path) -> None:
    again = load_base(exported)
    for name, network in {**base.networks, "vae": base.vae}.items():
        before, after = network.state_dict(), getattr(again, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
    assert (pictures(again) == pictures(base)).all()
    for one, two in zip(base.text.tokenizers, again.text.tokenizers, strict=True):
        assert one(PROMPTS).input_ids == two(PROMPTS).input_ids
        assert one.pad_token == two.pad_token


def test_what_the_empty_prompt_is_goes_along(
    base: BaseModel, exported: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    index = json.loads((exported / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    encoding = replace(base, zero_empty_prompt=False)
    other = load_base(export_folder(encoding, tmp_path / "other", torch.float32, {}))
    assert not other.zero_empty_prompt
    assert np.abs(pictures(other) - pictures(base)).max() > 1
