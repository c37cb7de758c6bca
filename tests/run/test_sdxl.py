"""SDXL from `main.py` to pictures: trained, gone on with, exported, sampled."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main
from ldm.checkpoint import find_snapshot, load_snapshot
from ldm.export import export_folder
from ldm.models.base import load_base
from ldm.training import DreamBoothModule
from scripts import sample
from tests.conftest import edit_json
from tests.evaluation.test_finish import choose, result_of, small
from tests.workspace import Workspace, difference, weights

TinyFolder = Callable[[str], Path]
PARTS = ("unet", "text_encoder", "text_encoder_2")
SETTINGS: dict[str, object] = {
    "prior__target": "base",
    "data__mirror": "true",
    "ema__schedule": "power",
    "objective__caption_dropout": 0.3,
    "training__precision": "bf16-mixed",
    "model__gradient_checkpointing": "true",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: TinyFolder) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("sdxl"), tiny_base_folder("sdxl"))


@pytest.fixture(scope="module")
def straight(place: Workspace) -> Path:
    return place.train("straight", training__steps=4, snapshots__every=2, **SETTINGS)


def test_both_encoders_are_trained_and_resume_is_exact(place: Workspace, straight: Path) -> None:
    run = place.train("resumed", training__steps=2, snapshots__every=2, **SETTINGS)
    assert main.main(["--resume", str(run), "training.steps=4"]) == 0
    before = load_base(place.base).networks
    for part in PARTS:
        assert difference(straight, run, step=4, part=part) == 0
        assert difference(straight, run, step=4, part=f"{part}.ema") == 0
        moved = weights(run, 4, part)
        changed = {
            key for key, old in before[part].state_dict().items() if (moved[key] != old).any()
        }
        unread = {key for key in moved if "encoder.layers.1." in key or "final_layer" in key}
        assert changed == set(moved) - (unread if part == "text_encoder" else set())


def test_sizes_of_pictures_and_class_images_arrive(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[tuple[float, ...]]] = {}
    step = DreamBoothModule.training_step

    def spy(module: DreamBoothModule, batches: list[dict[str, Any]], batch_idx: int) -> Any:
        for batch in batches:
            for name, sizes in zip(batch["names"], batch["sizes"].tolist(), strict=True):
                seen.setdefault(name, set()).add(tuple(sizes))
        return step(module, batches, batch_idx)

    monkeypatch.setattr(DreamBoothModule, "training_step", spy)
    place.train("sizes", prior__images="live", training__steps=3, training__text_encoder_stop=0.5)
    pictures = {name: sizes for name, sizes in seen.items() if name.endswith(".png")}
    # 40 pixels high and 48, 56 or 64 wide, of which 40 were cut out in the middle, at 32 pixels.
    wanted = {f"{n}.png": {(40, 48 + 8 * n, 0, round((4 + 4 * n) * 0.8), 32, 32)} for n in range(3)}
    assert pictures == wanted
    classes = {sizes for name in seen.keys() - pictures.keys() for sizes in seen[name]}
    assert classes == {(32, 32, 0, 0, 32, 32)}


@pytest.fixture(scope="module")
def exported(place: Workspace, straight: Path) -> Path:
    base = load_base(place.base)
    load_snapshot(find_snapshot(straight, 4), base.networks)
    about = {"identifier": "sks"}
    return export_folder(base, place.folder / "export", torch.float32, about)


def test_the_run_and_its_export_draw_what_diffusers_draws(
    place: Workspace, straight: Path, exported: Path
) -> None:
    words = ["--prompt", "a photo of [V] robot", "--n", "2", "--dtype", "fp32", "--seed", "3"]
    words += ["--scale", "5", "--steps", "3", "--sampler", "euler", "--device", "cpu"]
    drawn = []
    for source in (["--run", str(straight), "--snapshot", "4"], ["--model", str(exported)]):
        out = place.folder / source[0].strip("-")
        assert sample.main([*source, *words, "--out", str(out)]) == 0
        drawn.append(list(opened(out)))
    for one, two in zip(*drawn, strict=True):
        assert (one == two).all()
    from diffusers import StableDiffusionXLPipeline

    from ldm.sampling.generate import initial_noise

    pipeline = StableDiffusionXLPipeline.from_pretrained(exported, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a photo of sks robot"] * 2,
        latents=initial_noise([3, 4], (4, 8, 8)),
        num_inference_steps=3,
        guidance_scale=5.0,
        height=32,
        width=32,
        output_type="np",
    ).images
    assert np.abs(np.stack(drawn[0]) - theirs * 255).max() <= 1


def opened(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("0*.png")):
        with Image.open(path) as picture:
            yield np.asarray(picture, dtype=np.int16)


def test_it_is_measured_and_its_choice_exported(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = small(tmp_path, place.base)
    (measured.pictures / "heldout").mkdir()
    shutil.copy(measured.pictures / "0.png", measured.pictures / "heldout")
    choose(2, monkeypatch)
    run = measured.train("measured", training__pivotal=0.5, snapshots__every=2)
    assert (run / "samples" / "step-000002.png").is_file()
    scores = result_of(run)
    assert scores["chosen"] == 2
    assert all(scores["base"][key]["value"] > 0 for key in ("loss/subject", "loss/class"))
    chosen = load_base(run / "export")
    for part in PARTS:
        wanted, found = weights(run, 2, part), chosen.networks[part].state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_the_plan_counts_both_encoders(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--dry-run") == 0
    plan = capsys.readouterr().out
    networks = load_base(place.base).networks
    unet, first, second = (sum(p.numel() for p in networks[part].parameters()) for part in PARTS)
    unread = 2 * 16 + 2 * (16 + 16) + 4 * (16 * 16 + 16) + 2 * 16 * 32 + 32 + 16
    assert f"UNet {unet:,}, text encoder {first - unread:,}, second text encoder {second:,}" in plan
    assert f"layers that are never read {unread:,}, VAE" in plan
    assert place.main("--dry-run", model__train_text_encoder="false") == 0
    assert f"frozen        {first + second + 48_479:,} parameters" in capsys.readouterr().out


def test_a_refiner_is_refused_before_any_work(
    place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(place.base, tmp_path / "refiner"))
    edit_json(folder / "model_index.json", requires_aesthetics_score=True)
    runs = set(place.logs.glob("*"))
    assert place.main(model__base=folder) == 2
    said = capsys.readouterr().err
    assert said.count("SDXL refiner") == 1 and str(folder) in said and "Traceback" not in said
    assert set(place.logs.glob("*")) == runs
