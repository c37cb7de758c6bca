"""scripts/export.py: a run or a model becomes a folder or a single file; cards; the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open

from ldm.models.base import load_base
from ldm.run.export.card import model_card
from ldm.run.export.describe import licence_of
from scripts import export as script
from scripts import sample as sample_script
from tests.workspace import Workspace, weights


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("exports"), tiny_base_folder("eps"))


@pytest.fixture(scope="module")
def run(place: Workspace) -> Path:
    return place.train("exported", "samples.every=2", "samples.count=1", "ema.schedule=power")


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> Path:
    assert script.main([*map(str, words)]) == 0
    return Path(capsys.readouterr().out.split()[-1])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert script.main([*map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_run_becomes_a_single_file_that_is_sampled_and_trained_on(
    run: Path, place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(capsys, "--run", run, "--snapshot", "2", "--format", "single-file")
    assert file == run / "export-single-file" / f"{run.name}.safetensors"
    base = load_base(file)
    own = weights(run, 2)
    assert all(torch.equal(tensor, own[key]) for key, tensor in base.unet.state_dict().items())
    with safe_open(file, "pt") as opened:
        told = json.loads(opened.metadata()["dreambooth.about"])
        assert opened.metadata()["modelspec.trigger_phrase"] == "sks robot"
    assert (told["identifier"], told["step"], told["run"]) == ("sks", 2, run.name)
    assert told["recipe"]["training.steps"] == 2
    words = ["--model", str(file), "--prompt", "[V] robot", "--n", "1", "--steps", "2"]
    assert sample_script.main([*words, "--out", str(tmp_path / "pictures")]) == 0
    further = place.train("further", model__base=file)
    facts = json.loads((further / "run.json").read_text())
    assert facts["base_fingerprint"] == base.fingerprint
    again = exported(capsys, "--run", run, "--snapshot", "2", "--format", "single-file")
    assert again == file, "an earlier export is replaced"


def test_a_run_becomes_a_folder_with_a_card(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--run", run, "--snapshot", "2", "--ema", "--format", "diffusers", "--dtype", "fp16")
    folder = exported(capsys, *words)
    assert folder == run / "export-diffusers"
    averaged = load_base(folder).unet.state_dict()
    own = weights(run, 2, "unet.ema")
    assert all(torch.equal(averaged[key], tensor.half().float()) for key, tensor in own.items())
    card = (folder / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "other" and front["library_name"] == "diffusers"
    assert front["instance_prompt"] == "a drawing of sks robot"
    for part in ("`sks robot`", "`training.learning_rate` | 0.001", "3 pictures in 2 steps"):
        assert part in card
    assert (folder / "samples.png").read_bytes() == (run / "samples/step-000002.png").read_bytes()


def test_folder_to_file_to_folder_is_bit_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree("data/storybook-sd", base)
    words = ("--format", "single-file", "--out", tmp_path / "one.safetensors")
    file = exported(capsys, "--model", base, *words)
    folder = exported(capsys, "--model", file, "--format", "diffusers", "--out", tmp_path / "again")
    first, last = load_base(base), load_base(folder)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(first, part).state_dict(), getattr(last, part).state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()), part
    assert dict(first.scheduler.config) == dict(last.scheduler.config)
    text = "a drawing of a red dog"
    assert first.tokenizer(text).input_ids == last.tokenizer(text).input_ids
    front = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    assert front["license"] == "apache-2.0", "it went along"


def test_nothing_of_the_run_or_its_base_is_overwritten(
    run: Path, place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--run", run, "--snapshot", "2", "--format")
    assert "the run's own" in refused(capsys, *words, "diffusers", "--out", run)
    assert "the run's own" in refused(capsys, *words, "diffusers", "--out", run / "export")
    inside = run / "snapshots"
    assert "exists and is no export" in refused(capsys, *words, "diffusers", "--out", inside)
    model = place.base
    assert "the model itself lies" in refused(capsys, *words, "diffusers", "--out", model)
    part = model / "unet"
    assert "the model itself lies" in refused(capsys, *words, "diffusers", "--out", part)
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    mine = ("single-file", "--out", tmp_path / "mine.safetensors")
    assert "exists and is no export" in refused(capsys, *words, *mine)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"mine"
    assert "must end in .safetensors" in refused(capsys, *words, "single-file", "--out", "x.ckpt")


class FakeHub:
    """Remembers what it is told, in place of the hub's client."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        FakeHub.calls = []

    def create_repo(self, name: str, **how: Any) -> str:
        if name.startswith("forbidden/"):
            raise OSError("403 Forbidden: no right to write")
        self.calls.append(("create_repo", {"name": name, **how}))
        return f"https://hub/{name}"

    def upload_folder(self, **how: Any) -> None:
        self.calls.append(("upload_folder", how))

    def upload_file(self, **how: Any) -> None:
        self.calls.append(("upload_file", how))


def test_an_export_is_pushed_to_the_hub(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    words = ("--run", run, "--snapshot", "2", "--format", "diffusers", "--push")
    assert script.main([*map(str, words), "owner/robot"]) == 0
    assert "https://hub/owner/robot" in capsys.readouterr().out
    (made, how), (sent, what) = FakeHub.calls
    assert (made, how) == ("create_repo", {"name": "owner/robot", "exist_ok": True})
    assert sent == "upload_folder"
    assert what == {"repo_id": "owner/robot", "folder_path": run / "export-diffusers"}
    assert "403 Forbidden" in refused(capsys, *words, "forbidden/robot")
    assert "must be OWNER/NAME" in refused(capsys, *words, "robot")


def test_the_licence_is_that_of_the_bases_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert licence_of(str(tmp_path)) is None
    for text, told in (
        ("---\nlicense: creativeml-openrail-m\n---\n# x\n", "creativeml-openrail-m"),
        ("# a card without front matter\n---\nlicense: x\n---\n", None),
        ("---\n: [\n---\n", None),
    ):
        card.write_text(text, "utf-8")
        assert licence_of(str(tmp_path)) == told


def test_a_card_tells_the_numbers_beside_the_bases() -> None:
    score = {"value": 0.75, "low": 0.5, "high": 1.0, "n": 8}
    base = {"value": 0.25, "low": 0.0, "high": 0.5, "n": 8}
    about = {
        "identifier": "sks",
        "class_noun": "dog",
        "base": "owner/base",
        "step": 5,
        "licence": "mit",
        "metrics": {"subject/identity": score},
        "base_metrics": {"subject/identity": base},
    }
    card = model_card(about)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "owner/base"
    assert "| subject: recognised as the subject | 75.0 % (50 to 100) | 25.0 % (0 to 50) |" in card
    assert "![" not in card and "`owner/base`: mit" in card
