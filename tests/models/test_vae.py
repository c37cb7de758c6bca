"""Another VAE in the base's place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.export import export_folder, export_single_file
from ldm.models.base import BaseModel, load_base
from ldm.models.choices import Choices
from tests.conftest import edit_json
from tests.models.files.kinds import Written, save_folder

PREFIX = "first_stage_model."


@pytest.fixture(scope="module")
def folder(written: Callable[[str], Written], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(written("sd1").parts, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def plain(folder: Path) -> BaseModel:
    return load_base(folder)


@pytest.fixture(scope="module")
def others(written: Callable[[str], Written], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same VAE with one weight of another value, in each form that people have."""
    tiny, place = written("sd1"), tmp_path_factory.mktemp("others")
    name = "decoder.conv_out.bias"
    vae = {n.removeprefix(PREFIX): t for n, t in tiny.tensors.items() if n.startswith(PREFIX)}
    vae[name] = vae[name] + 1
    rest = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    save_file({**vae, **rest}, place / "alone.safetensors")
    save_file({PREFIX + n: t for n, t in vae.items()}, place / "prefixed.safetensors")
    torch.save({"state_dict": vae}, place / "alone.ckpt")
    model = save_folder(tiny.parts, place / "model")
    base = load_base(model)
    with torch.no_grad():
        base.vae.decoder.conv_out.bias.add_(1)
    base.vae.save_pretrained(place / "vae")
    base.vae.save_pretrained(model / "vae")
    export_single_file(base, place / "ours.safetensors", torch.float32, {})
    return place


FORMS = ("alone.safetensors", "prefixed.safetensors", "alone.ckpt", "vae", "model")


@pytest.mark.parametrize("form", [*FORMS, "ours.safetensors"])
def test_every_form_takes_the_place_of_the_bases_own(
    folder: Path, plain: BaseModel, others: Path, form: str
) -> None:
    base = load_base(folder, choices=Choices(vae=str(others / form)))
    own, new = plain.vae.state_dict(), base.vae.state_dict()
    for key, tensor in own.items():
        changed = 1 if key == "decoder.conv_out.bias" else 0
        assert torch.equal(new[key], tensor + changed), key
    assert base.vae.dtype is torch.float32 and not base.vae.training
    assert base.vae_fingerprint != plain.vae_fingerprint
    assert base.fingerprint != plain.fingerprint


def test_a_hub_id_is_fetched(folder: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert {"config.json", "vae/config.json"} <= set(allow_patterns)
        if name == "owner/none":
            raise LocalEntryNotFoundError("no network")
        return str(others / "vae")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    base = load_base(folder, choices=Choices(vae="owner/vae"))
    assert asked == ["owner/vae"]
    own = load_base(folder, choices=Choices(vae=str(others / "vae")))
    assert base.vae_fingerprint == own.vae_fingerprint
    with pytest.raises(UserError, match="model.vae=owner/none: no folder of this name"):
        load_base(folder, choices=Choices(vae="owner/none"))


def test_exports_contain_it(folder: Path, others: Path, tmp_path: Path) -> None:
    base = load_base(folder, choices=Choices(vae=str(others / "vae")))
    bias = base.vae.decoder.conv_out.bias
    one = load_base(export_folder(base, tmp_path / "folder", torch.float32, {}))
    two = load_base(export_single_file(base, tmp_path / "m.safetensors", torch.float32, {}))
    for read in (one, two):
        assert torch.equal(read.vae.decoder.conv_out.bias, bias)


def test_what_does_not_fit_is_refused(
    folder: Path, others: Path, tmp_path: Path, written: Callable[[str], Written]
) -> None:
    def message(vae: Path | str) -> str:
        with pytest.raises(UserError) as raised:
            load_base(folder, choices=Choices(vae=str(vae)))
        return str(raised.value)

    other = tmp_path / "scaled"
    shutil.copytree(others / "vae", other)
    edit_json(other / "config.json", scaling_factor=0.13025)
    assert "scaling_factor 0.13025 (the base's: 0.18215)" in message(other)
    assert "2 (the base's: 2)" not in message(other)
    named = others / "vae" / "diffusion_pytorch_model.safetensors"
    assert "diffusers' names; give the folder" in message(named)
    tensors = {n: t for n, t in written("sd1").tensors.items() if "quant_conv" not in n}
    alone = {n: t for n, t in tensors.items() if n.startswith(PREFIX)}
    save_file(alone, tmp_path / "part.safetensors")
    assert "lacks first_stage_model.quant_conv.weight" in message(tmp_path / "part.safetensors")
    assert "no such folder or file" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in message(tmp_path / "empty")
