"""Loading a base model: strictly, with errors that name the part."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.models.base import BaseModel, check_resolution, frozen_copy, load_base

TinyFolder = Callable[[str], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tiny_base_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_base_folder("v"), tmp_path / "base"))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_what_is_loaded(tiny_base_folder: TinyFolder) -> None:
    base = load_base(tiny_base_folder("v"))
    assert (base.latent_factor, base.multiple, base.default_resolution) == (4, 8, 32)
    assert (base.latent_channels, base.prediction_type) == (4, "v_prediction")
    assert base.tokenizer.model_max_length == 32
    assert not any(m.training for m in (base.unet, base.vae, base.text_encoder))
    assert load_base(tiny_base_folder("eps")).prediction_type == "epsilon"


def test_convolutions_lie_channels_last(tiny_base_folder: TinyFolder) -> None:
    base = load_base(tiny_base_folder("eps"))
    for convolution in (base.unet.conv_in, base.vae.decoder.conv_in):
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_dtype_is_not_the_vaes(tiny_base_folder: TinyFolder) -> None:
    base = load_base(tiny_base_folder("eps"), dtype=torch.bfloat16)
    assert (base.unet.dtype, base.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
    assert base.vae.dtype == torch.float32
    assert base.to("cpu", torch.float32).unet.dtype == torch.float32
    assert base.to("cpu").unet.dtype == torch.float32


def test_fingerprint_follows_content_not_place(folder: Path, tiny_base_folder: TinyFolder) -> None:
    first, copy = load_base(tiny_base_folder("v")), load_base(folder)
    assert (first.fingerprint, first.vae_fingerprint) == (copy.fingerprint, copy.vae_fingerprint)
    edit_weights(folder / UNET, lambda weights: weights["conv_in.bias"].add_(1e-3))
    changed = load_base(folder)
    assert changed.fingerprint != first.fingerprint
    assert changed.vae_fingerprint == first.vae_fingerprint
    edit_weights(folder / VAE, lambda weights: weights["encoder.conv_in.bias"].add_(1e-3))
    assert load_base(folder).vae_fingerprint != first.vae_fingerprint


@pytest.mark.parametrize(
    "missing",
    [
        "tokenizer/tokenizer.json",
        "text_encoder/config.json",
        TEXT,
        "vae/config.json",
        VAE,
        "unet/config.json",
        UNET,
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_part_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing.split("/")[0]) as error:
        load_base(folder)
    assert str(folder) in str(error.value)


def test_two_missing_parts_are_both_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(UserError, match=r"scheduler/.*vae"):
        load_base(folder)


@pytest.mark.parametrize("part", [UNET, VAE, TEXT])
def test_weights_are_loaded_strictly(folder: Path, part: str) -> None:
    whole = (folder / part).read_bytes()
    edit_weights(folder / part, lambda weights: weights.pop(sorted(weights)[0]))
    with pytest.raises(UserError, match="missing_keys"):
        load_base(folder)
    (folder / part).write_bytes(whole)
    edit_weights(folder / part, lambda weights: weights.update(stray=torch.zeros(1)))
    with pytest.raises(UserError, match=r"unexpected_keys.*stray"):
        load_base(folder)
    (folder / part).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=part.split("/")[0]):
        load_base(folder)


def test_older_text_encoder_names_load(folder: Path) -> None:
    before = load_base(folder).text_encoder.state_dict()

    def old(weights: dict[str, torch.Tensor]) -> None:
        for key in list(weights):
            weights[f"text_model.{key.removeprefix('text_model.')}"] = weights.pop(key)
        weights["text_model.embeddings.position_ids"] = torch.arange(32)[None]

    edit_weights(folder / TEXT, old)
    after = load_base(folder).text_encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_variant(folder: Path) -> None:
    for path in (UNET, VAE, TEXT):
        file = folder / path
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    with pytest.raises(UserError, match="there is variant fp16"):
        load_base(folder)
    assert load_base(folder, variant="fp16").unet.dtype == torch.float32


def test_sharded_weights(folder: Path, tiny_base_folder: TinyFolder) -> None:
    base = load_base(folder)
    (folder / UNET).unlink()
    base.unet.save_pretrained(folder / "unet", max_shard_size="300KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    again = load_base(folder)
    for one, two in zip(base.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, two)
    shard = min((folder / "unet").glob("*-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        load_base(folder)


def test_sources_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError(f"cannot find {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="data/nothing.*without a network"):
        load_base("data/nothing")
    with pytest.raises(UserError, match="no such folder"):
        load_base(tmp_path / "nothing")
    (tmp_path / "sd.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="an empty file"):
        load_base(tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match="not a diffusers folder"):
        load_base(tmp_path)


def test_hub_id(tiny_base_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def download(name: str, **options: object) -> str:
        asked[name] = options
        return str(tiny_base_folder("v"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    base = load_base("owner/name", revision="main")
    assert (base.source, asked["owner/name"]["revision"]) == ("owner/name", "main")
    patterns = asked["owner/name"]["allow_patterns"]
    assert isinstance(patterns, list)
    assert {UNET, "text_encoder_2/model.safetensors", "tokenizer_2/*"} <= {*patterns}
    assert not any("safety" in pattern or ".bin" in pattern for pattern in patterns)


def test_parts_that_do_not_fit(folder: Path, tiny_base_folder: TinyFolder) -> None:
    (folder / "text_encoder_2").mkdir()
    with pytest.raises(UserError, match="2 text encoders"):
        load_base(folder)
    (folder / "text_encoder_2").rmdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text("utf-8").replace("v_prediction", "sample"), "utf-8")
    with pytest.raises(UserError, match="prediction_type 'sample'"):
        load_base(folder)


def test_check_resolution(tiny_base_folder: TinyFolder) -> None:
    base: BaseModel = load_base(tiny_base_folder("v"))
    check_resolution(base, 40)
    for resolution, advice in ((33, "32 or 40"), (3, "8 or 16"), (0, "32"), (-8, "32")):
        with pytest.raises(UserError, match=rf"data\.resolution: {resolution} .*use {advice}$"):
            check_resolution(base, resolution)


def test_frozen_copy_shares_nothing(tiny_base_folder: TinyFolder) -> None:
    base = load_base(tiny_base_folder("v"))
    base.unet.train().requires_grad_(True)
    copy = frozen_copy(base)
    assert (copy.source, copy.fingerprint) == (base.source, base.fingerprint)
    for name in ("unet", "text_encoder", "vae"):
        own, other = getattr(copy, name), getattr(base, name)
        assert not own.training and not any(weight.requires_grad for weight in own.parameters())
        places = {weight.data_ptr() for weight in other.state_dict().values()}
        assert own.state_dict().keys() == other.state_dict().keys()
        for key, weight in own.state_dict().items():
            assert weight.data_ptr() not in places
            assert torch.equal(weight, other.state_dict()[key])
    assert base.unet.training and all(weight.requires_grad for weight in base.unet.parameters())
    assert copy.tokenizer._tokenizer is not base.tokenizer._tokenizer
    assert copy.tokenizer("a robot")["input_ids"] == base.tokenizer("a robot")["input_ids"]
    assert copy.scheduler is not base.scheduler
    assert copy.scheduler.config == base.scheduler.config
