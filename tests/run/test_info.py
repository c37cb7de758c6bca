"""What files say of themselves, without their weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.checkpoint.resume import ResumeIO
from ldm.checkpoint.snapshots import save_snapshot
from ldm.errors import UserError
from ldm.export import export_folder, export_single_file
from ldm.models.base import load_base
from ldm.run.info import as_text, tell
from ldm.sampling.metadata import png_info
from scripts.info import main

TinyFolder = Callable[[str], Path]


def test_picture(tmp_path: Path) -> None:
    settings = {"prompt": "a dog\nin snow", "seed": 5, "steps": 2}
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png", pnginfo=png_info(settings))
    Image.new("RGB", (8, 4)).save(tmp_path / "plain.JPG")
    told = tell(tmp_path / "a.png")
    assert told["is"] == "picture, PNG" and told["size"] == [8, 4]
    assert settings.items() <= told["ldm"].items() and "Seed: 5" in told["parameters"]
    assert "none: neither" in tell(tmp_path / "plain.JPG")["metadata"]
    assert "  prompt\n    a dog\n    in snow\n  seed " in as_text(told["ldm"], "  ")


def test_snapshot_and_resume_state(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    path = save_snapshot(tmp_path, {"unet": module}, {"seed": 3}, 7)
    told = tell(path)
    assert (told["step"], told["config"], told["whole"]) == (7, {"seed": 3}, "by names and sizes")
    (path / "unet.safetensors").write_bytes(b"half")
    assert "no: unet.safetensors" in tell(path)["whole"]
    (path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        tell(path)
    state = {"global_step": 9, "state_dict": module.state_dict(), "optimizer_states": [{}]}
    ResumeIO().save_checkpoint(state, tmp_path / "resume.ckpt")
    told = tell(tmp_path / "resume.ckpt")
    assert (told["step"], told["weights"], told["size as in resume.json"]) == (9, 2, True)


def test_models_and_adapters(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    base, about = load_base(tiny_base_folder("v")), {"identifier": "sks", "step": 4}
    assert tell(tiny_base_folder("sdxl"))["is"] == "model folder, StableDiffusionXLPipeline"
    export_folder(base, tmp_path / "folder", torch.float32, about)
    assert tell(tmp_path / "folder")["dreambooth.json"] == about
    export_single_file(base, tmp_path / "one.safetensors", torch.float16, about)
    told = tell(tmp_path / "one.safetensors")
    assert told["dreambooth"] == about
    assert told["modelspec"]["modelspec.prediction_type"] == "v"
    assert told["numbers"] > told["tensors"] > 100
    lora = {"lora_unet_a.lora_down.weight": torch.zeros(2, 3)}
    save_file(lora, tmp_path / "l.safetensors", {"ss_network_dim": "2", "note": "x"})
    told = tell(tmp_path / "l.safetensors")
    assert told["is"].startswith("this is a LoRA")
    assert (told["ss"], told["other"], told["numbers"]) == (
        {"ss_network_dim": "2"},
        {"note": "x"},
        6,
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "run.json").write_text('{"identifier": "sks", "config": {"seed": 1}}')
    (run / "evaluation.json").write_text('{"chosen": 2, "reasons": ["good"]}')
    assert main([str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[str(run)]
    assert told["chosen"] == [2] and told["run.json"] == {"identifier": "sks"}
    assert main([str(run)]) == 0
    assert "    identifier sks" in capsys.readouterr().out
    for name in ("nowhere", "run/run.json"):
        assert main([str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "neither a run" in capsys.readouterr().err
