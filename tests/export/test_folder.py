"""An exported model is the model: for diffusers, and for ourselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ldm.errors import UserError
from ldm.export import ABOUT, export_folder
from ldm.models.base import BaseModel, load_base
from ldm.sampling.generate import generate
from ldm.sampling.samplers import from_pure_noise

PARTS = ("unet", "text_encoder", "vae")


@pytest.fixture
def trained(tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    """A base whose every weight is another than on the disk."""
    base = load_base(tiny_base_folder("v"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in (base.unet, base.text_encoder):
            for weight in part.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return replace(base, scheduler=from_pure_noise(base.scheduler))


def drawn(base: BaseModel, latents: torch.Tensor) -> np.ndarray:
    prompts, settings = ["a drawing of sks robot"], {"sampler": "ddim", "steps": 4, "scale": 3.0}
    (picture,) = generate(base, prompts, [0], latents=latents, **settings)  # type: ignore[arg-type]
    return np.asarray(picture, dtype=np.int64)


def test_diffusers_draws_what_we_draw(trained: BaseModel, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    out = export_folder(trained, tmp_path / "export", torch.float32, {})
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    pipeline.set_progress_bar_config(disable=True)
    (theirs,) = pipeline(
        "a drawing of sks robot",
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=latents,
        height=32,
        width=32,
    ).images
    ours = drawn(trained, latents)
    assert abs(ours - np.asarray(theirs, dtype=np.int64)).max() <= 1, "but for rounding"


def test_it_loads_back_bit_for_bit(trained: BaseModel, tmp_path: Path) -> None:
    out = export_folder(trained, tmp_path / "deep" / "export", torch.float32, {"step": 3})
    again = load_base(out)
    for part in PARTS:
        before, after = getattr(trained, part).state_dict(), getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), part
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert (drawn(trained, latents) == drawn(again, latents)).all()
    text = "a drawing of sks robot"
    assert again.tokenizer(text).input_ids == trained.tokenizer(text).input_ids
    assert json.loads((out / ABOUT).read_text()) == {"step": 3}


def test_what_others_read(trained: BaseModel, tmp_path: Path) -> None:
    out = export_folder(trained, tmp_path / "export", torch.float16, {})
    with safe_open(out / "text_encoder/model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
        assert file.get_tensor("text_model.final_layer_norm.weight").dtype == torch.float16
    assert trained.unet.dtype == torch.float32, "the model itself stays as it is"
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (out / "tokenizer" / name).is_file()
    for path in out.rglob("*.json"):
        assert str(tmp_path) not in path.read_text() and trained.source not in path.read_text()


def test_an_earlier_one_is_replaced_and_stays_where_that_fails(
    trained: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_folder(trained, tmp_path / "export", torch.float32, {"step": 1})
    export_folder(trained, out, torch.float32, {"step": 2})
    assert json.loads((out / ABOUT).read_text()) == {"step": 2}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.export.folder.write_tensors", full)
    with pytest.raises(UserError, match="No space left"):
        export_folder(trained, out, torch.float32, {"step": 3})
    assert json.loads((out / ABOUT).read_text()) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
