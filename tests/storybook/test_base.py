"""The shipped base: it opens everywhere, draws what it is told, and says how well."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.data.images import to_tensor
from ldm.models.base import BaseModel, load_base
from ldm.models.text import tokens_of
from ldm.sampling.denoiser import Guidance
from ldm.sampling.generate import denoise, generate
from ldm.sampling.samplers import make_sampler
from ldm.storybook.oracle import load_oracle
from ldm.storybook.pretraining.score import held_out_scenes, prompt_of
from ldm.storybook.pretraining.tokenizer import IDENTIFIERS

FOLDER = Path("data/storybook-sd")
PROMPT = "a drawing of a red dog wearing a top hat on the beach"


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(FOLDER)


def test_size_and_precision() -> None:
    weights = list(FOLDER.rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 24 * 2**20


def pipeline_latents(base: BaseModel, sampler: str, noise: torch.Tensor) -> torch.Tensor:
    """What diffusers' own pipeline makes of the noise in 8 steps at guidance 5."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_sampler(sampler, base.scheduler)
    settings = {"num_inference_steps": 8, "guidance_scale": 5.0, "height": 64, "width": 64}
    made = pipeline([PROMPT] * len(noise), latents=noise, output_type="latent", **settings)
    return made.images


def test_diffusers_pipeline_opens_it_and_draws_the_same(base: BaseModel) -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = pipeline_latents(base, "dpmpp_2m", noise)
    with torch.no_grad():
        decoded = base.vae.decode(expected / base.vae.config.scaling_factor).sample.clamp(-1, 1)
    drawn = list(generate(base, [PROMPT] * 2, [0, 1], steps=8, latents=noise))
    for picture, reference in zip(drawn, decoded, strict=True):
        assert (to_tensor(picture) - reference).abs().max() <= 1 / 127.5 + 1e-4


def test_latents_equal_the_pipelines_to_rounding(base: BaseModel) -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for name in ("dpmpp_2m", "ddim"):
        expected = pipeline_latents(base, name, noise)
        with torch.no_grad():
            cond, uncond = (base.text.encode([text] * 2, "cpu") for text in (PROMPT, ""))
            solver = make_sampler(name, base.scheduler)
            latents = denoise(base, solver, 8, noise, cond, uncond, [], Guidance(5.0))
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)


def test_identifiers_are_single_tokens_that_it_never_saw(base: BaseModel) -> None:
    for word in IDENTIFIERS:
        assert tokens_of(base.tokenizer, word) == [f"{word}</w>"]
    assert len(tokens_of(base.tokenizer, "žluťoučký 🦊")) > 4  # any text can be tokenised


def test_draws_what_it_is_told(base: BaseModel) -> None:
    """A small sample; the whole table stands in scores.json."""
    scenes = held_out_scenes(48, seed=31_000)
    prompts = [prompt_of(scene) for scene in scenes]
    drawn = list(generate(base, prompts, range(48), batch=24))
    pairs = list(zip(scenes, load_oracle().read(drawn), strict=True))
    for attribute, key, least in (
        ("class", "noun", 0.85),
        ("colour", "colour", 0.8),
        ("setting", "setting", 0.85),
    ):
        right = sum(r.words[attribute] == getattr(scene, key) for scene, r in pairs)
        assert right / len(pairs) >= least, attribute


def test_scores_stand_beside_it() -> None:
    scores = json.loads((FOLDER / "scores.json").read_text())
    assert {"class", "colour", "setting", "none of these"} <= scores["base"].keys()
    assert all(score["n"] >= 256 for score in scores["base"].values())
    with Image.open(FOLDER / "samples.png") as sheet:
        assert min(sheet.size) > 200
