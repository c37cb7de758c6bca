"""Runs on single files: what the same base gives as a folder; what may not change on resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import main
from ldm.export import export_single_file
from ldm.models.base import load_base
from tests.workspace import Workspace, difference


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("files"), tiny_base_folder("v"))


@pytest.fixture(scope="module")
def file(place: Workspace) -> Path:
    base = load_base(place.base)
    return export_single_file(base, place.folder / "base.safetensors", torch.float32, {})


@pytest.fixture(scope="module")
def run(place: Workspace, file: Path) -> Path:
    return place.train("file", model__base=file)


def test_a_file_is_trained_on_as_its_folder(place: Workspace, run: Path) -> None:
    from_folder = place.train("folder")
    for part in ("unet", "text_encoder"):
        assert difference(from_folder, run, part=part) == 0
    facts = [json.loads((one / "run.json").read_text()) for one in (run, from_folder)]
    assert facts[0]["base_fingerprint"] != facts[1]["base_fingerprint"], "another form"


@pytest.mark.parametrize(
    "change",
    ["model.prediction_type=epsilon", "model.ema=true", "model.vae=V", "model.tokenizer=T"],
)
def test_another_base_is_refused_on_resume(
    place: Workspace, run: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["--resume", str(run), change, "training.steps=3"]) == 2
    said = capsys.readouterr().err
    assert "was started with other values" in said and change.split("=")[0] in said


def test_a_changed_file_is_refused_on_resume(
    run: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, file, metadata)
    assert main.main(["--resume", str(run), "training.steps=3"]) == 2
    assert "its weights are others" in capsys.readouterr().err
    file.write_bytes(before)
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0
