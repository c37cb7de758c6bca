"""Single files as they are found: what is read, what is refused, and in which words."""

import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.data.sizes import sizes_of_whole
from ldm.errors import UserError
from ldm.export.single_file import export_single_file
from ldm.models.base import load_base
from ldm.models.choices import Choices
from ldm.models.files import single_file
from ldm.models.files.keys import Kind
from ldm.models.files.single_file import CONFIGS, read_single_file
from ldm.models.unet import predict
from tests.models.files.kinds import (
    TINY,
    Written,
    save_folder,
    text_config,
    unet_config,
    vae_config,
)

UNET = "model.diffusion_model."


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published sizes are the tiny ones, and no tokenizer is in reach but those given."""

    def known(kind: Kind, prediction_type: str) -> dict[str, dict[str, Any]]:
        sizes = TINY[kind]
        configs = {"unet": unet_config(sizes), "vae": vae_config(sizes)}
        for number, text in enumerate(sizes.text):
            config = text_config(text, alone=len(sizes.text) == 1).to_dict()
            configs["text_encoder" + ("_2" if number else "")] = config
        return configs

    def offline(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError(f"cannot find {name}")

    monkeypatch.setattr(single_file, "known_configs", known)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)


@pytest.fixture(scope="module")
def words(written: Callable[[str], Written], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    written("sd1").parts["tokenizer"].save_pretrained(folder)
    return str(folder)


def saved(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


@pytest.mark.usefixtures("foreign")
def test_what_weights_cannot_tell_is_asked_for_or_found(
    written: Callable[[str], Written], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def predicted(kind: str, given: str | None = None, **metadata: str) -> Any:
        own = {key.replace("__", "."): value for key, value in metadata.items()}
        path = saved(tmp_path / "m.safetensors", {**written(kind).tensors, **marks}, own)
        read = read_single_file(path, tokenizer=words, prediction_type=given)
        return read.scheduler.config

    marks: dict[str, Tensor] = {}
    assert predicted("sd1").prediction_type == "epsilon"
    assert "Stable Diffusion 1.x, predicts epsilon (as is usual" in caplog.text
    with pytest.raises(UserError, match=r"give\s+model.prediction_type=epsilon or"):
        predicted("sd2")
    assert predicted("sd2", "v_prediction").prediction_type == "v_prediction"
    assert predicted("sd2", modelspec__prediction_type="v").prediction_type == "v_prediction"
    assert predicted("sd2", modelspec__prediction_type="epsilon").prediction_type == "epsilon"
    caplog.clear()
    assert predicted("sd1", "v_prediction", modelspec__prediction_type="epsilon")[
        "prediction_type"
    ] == ("v_prediction")
    assert "model.prediction_type=v_prediction is used" in caplog.text
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    config = predicted("sdxl")
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr


@pytest.mark.usefixtures("foreign")
def test_a_training_checkpoint_is_read_as_tensors_alone(
    written: Callable[[str], Written], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The form of the first published checkpoints: a pickle with averaged weights and more."""
    import numpy
    from pytorch_lightning.callbacks import ModelCheckpoint

    caplog.set_level(logging.INFO)
    tensors = written("sd1").tensors
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(UNET)
    }
    short = {name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}
    rest = {"betas": torch.ones(1000), "model_ema.decay": torch.tensor(0.9999)}
    content = {
        "state_dict": OrderedDict(short | averaged | rest),
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
        "epoch": numpy.float64(3.0),
    }
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    plain = read_single_file(path, tokenizer=words)
    assert "the ordinary ones are read (model.ema=false)" in caplog.text
    chosen = read_single_file(path, tokenizer=words, ema=True)
    assert "the averaged ones are read (model.ema=true)" in caplog.text
    for key, weight in written("sd1").parts["unet"].state_dict().items():
        assert torch.equal(plain.parts["unet"].state_dict()[key], weight)
        assert torch.equal(chosen.parts["unet"].state_dict()[key], weight + 1)
    assert plain.fingerprint != chosen.fingerprint
    with pytest.raises(UserError, match="model.ema=true.*no averaged weights"):
        read_single_file(written("sd1").file, ema=True)


class Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize("how", [torch.save, lambda content, path: pickle_to(path, content)])
def test_a_pickle_that_would_run_a_program_is_refused(
    how: Callable[[Any, Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how({"state_dict": {"a": torch.ones(1)}, "more": Program()}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="could run a program.*as .safetensors"):
        read_single_file(tmp_path / "bad.ckpt")
    assert "must not run" not in capsys.readouterr().out


def pickle_to(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.usefixtures("foreign")
def test_half_precision_is_read_into_what_is_asked_for(
    written: Callable[[str], Written], words: str, tmp_path: Path
) -> None:
    tiny = written("sd1")
    halves = {name: tensor.half() for name, tensor in tiny.tensors.items()}
    attention = "first_stage_model.encoder.mid.attn_1.q.weight"
    halves[attention] = halves[attention][:, :, 0, 0]  # as some tools write it
    path = saved(tmp_path / "half.safetensors", halves)
    for dtype in (torch.float32, torch.bfloat16):
        base = load_base(path, dtype, choices=Choices(tokenizer=words))
        assert (base.unet.dtype, base.text_encoder.dtype) == (dtype, dtype)
        assert base.vae.dtype is torch.float32
    own = tiny.parts["vae"].state_dict()
    for key, tensor in base.vae.state_dict().items():
        assert torch.equal(tensor, own[key].half().float())


REFUSED: dict[str, dict[str, tuple[int, ...]]] = {
    "a LoRA": {"lora_unet_mid_block.lora_down.weight": (4, 4)},
    "a Flux model": {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (3, 3)},
    "a Stable Diffusion 3 model": {"model.diffusion_model.joint_blocks.0.x.weight": (3, 3)},
    "the refiner of": {"conditioner.embedders.0.model.ln_final.weight": (8,)},
    "a ControlNet": {"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)},
    "a video model": {"model.diffusion_model.input_blocks.1.0.time_stack.in.weight": (8,)},
    "the embedding of a textual inversion": {"emb_params": (1, 768)},
    "one part of a folder": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
    "a VAE alone; give it as model.vae": {"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)},
    "an inpainting model": {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)},
    "a depth model": {f"{UNET}input_blocks.0.0.weight": (320, 5, 3, 3)},
    "an upscaler": {f"{UNET}input_blocks.0.0.weight": (320, 7, 3, 3)},
    "without a text encoder": {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3)},
    "none of the names": {"features.0.weight": (3, 3)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_kinds_are_refused_by_name(what: str, tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in REFUSED[what].items()}
    with pytest.raises(UserError, match=what):
        load_base(saved(tmp_path / "other.safetensors", tensors))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page saved under this name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a git-lfs pointer"),
        (b"", "an empty file"),
        (b"PK\x03\x04 and so on", "breaks off before its end"),
        (b"\x80\x02}q\x00", "damaged"),
        (b"whatever else there is", "neither safetensors nor a PyTorch checkpoint"),
    ],
)
def test_other_files_are_told_apart(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_base(tmp_path / "m.safetensors")


def test_a_download_that_broke_off(written: Callable[[str], Written], tmp_path: Path) -> None:
    whole = written("sd1").file.read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged.*broke off"):
        load_base(tmp_path / "m.safetensors")


@pytest.mark.usefixtures("foreign")
def test_missing_unexpected_and_misshapen_tensors_are_named(
    written: Callable[[str], Written], words: str, tmp_path: Path
) -> None:
    tensors, path = written("sd1").tensors, tmp_path / "m.safetensors"
    gone = f"{UNET}time_embed.0.bias"

    def message(changed: Mapping[str, Tensor]) -> str:
        with pytest.raises(UserError) as raised:
            read_single_file(saved(path, changed), tokenizer=words)
        return str(raised.value)

    assert f"lacks {gone}" in message({n: t for n, t in tensors.items() if n != gone})
    assert "has something.else, which no such model has" in message(
        {**tensors, "something.else": torch.zeros(1)}
    )
    said = message({**tensors, gone: torch.zeros(3)})
    assert f"has {gone} of shape [3], where [64] is right" in said and "published size" in said


def test_a_strange_size_is_refused_without_a_word_of_where_it_comes_from(
    written: Callable[[str], Written], tmp_path: Path
) -> None:
    path = saved(tmp_path / "m.safetensors", written("sd1").tensors)
    with pytest.raises(UserError, match="not quite Stable Diffusion 1.x.*published size"):
        load_base(path)


def test_metadata_of_ours_that_are_damaged(
    written: Callable[[str], Written], tmp_path: Path
) -> None:
    tiny, path = written("sd1"), tmp_path / "m.safetensors"
    with safe_open(tiny.file, "pt") as opened:
        metadata = opened.metadata()
    for text in ("{", '{"kind": "sd1"}', "[]"):
        with pytest.raises(UserError, match=f"its metadata {CONFIGS} is damaged"):
            load_base(saved(path, tiny.tensors, {**metadata, CONFIGS: text}))
    other = metadata[CONFIGS].replace('"kind": "sd1"', '"kind": "sd2"')
    with pytest.raises(UserError, match="is of another model"):
        load_base(saved(path, tiny.tensors, {CONFIGS: other}))


@pytest.mark.usefixtures("foreign")
def test_the_tokenizer_that_a_file_does_not_hold(
    written: Callable[[str], Written], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.safetensors", written("sd1").tensors)

    def message(tokenizer: str | None) -> str:
        with pytest.raises(UserError) as raised:
            load_base(path, choices=Choices(tokenizer=tokenizer))
        return str(raised.value)

    assert "give model.tokenizer=FOLDER" in message(None)
    assert "no such folder" in message(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "neither tokenizer.json nor vocab.json" in message(str(tmp_path / "empty"))
    said = message("data/storybook-sd")
    assert "has 718 tokens" in said and "that the model was trained with" in said
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: words)
    own = written("sd1").parts["tokenizer"]
    assert load_base(path).tokenizer("sks").input_ids == own("sks").input_ids, "from the hub"
    assert load_base(path, choices=Choices(tokenizer=words)).tokenizer.pad_token == "<|endoftext|>"
    second = saved(tmp_path / "2.safetensors", written("sd2").tensors)
    chosen = Choices(tokenizer=words, prediction_type="v_prediction")
    assert load_base(second, choices=chosen).tokenizer.pad_token == "!", "as OpenCLIP fills up"


def test_what_belongs_to_files_is_refused_for_folders(
    written: Callable[[str], Written], words: str, tmp_path: Path
) -> None:
    folder = save_folder(written("sd1").parts, tmp_path / "folder")
    with pytest.raises(UserError, match=r"model.tokenizer=.*leave it out"):
        load_base(folder, choices=Choices(tokenizer=words))
    with pytest.raises(UserError, match="model.ema=true"):
        load_base(folder, choices=Choices(ema=True))
    plain = load_base(folder)
    other = load_base(folder, choices=Choices(prediction_type="v_prediction"))
    assert (plain.prediction_type, other.prediction_type) == ("epsilon", "v_prediction")
    assert plain.fingerprint != other.fingerprint


def test_fingerprints_tell_what_a_model_is(
    written: Callable[[str], Written], tmp_path: Path
) -> None:
    tiny = written("sd1")
    first = load_base(tiny.file)
    assert first.fingerprint == load_base(tiny.file).fingerprint
    name = f"{UNET}out.2.bias"
    with safe_open(tiny.file, "pt") as opened:
        metadata = opened.metadata()
    path = tmp_path / "m.safetensors"
    changed = load_base(saved(path, {**tiny.tensors, name: tiny.tensors[name] + 1}, metadata))
    assert changed.fingerprint != first.fingerprint
    assert changed.vae_fingerprint == first.vae_fingerprint
    name = "first_stage_model.quant_conv.bias"
    changed = load_base(saved(path, {**tiny.tensors, name: tiny.tensors[name] + 1}, metadata))
    assert changed.vae_fingerprint != first.vae_fingerprint


@pytest.mark.parametrize("kind", ["eps", "v", "sdxl"])
def test_a_base_is_the_same_from_a_folder_and_from_its_single_file(
    tiny_base_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = load_base(tiny_base_folder(kind))
    path = export_single_file(folder, tmp_path / "model.safetensors", torch.float32, {})
    file = load_base(path)
    assert file.zero_empty_prompt == folder.zero_empty_prompt == (kind == "sdxl")
    noisy, sizes = torch.randn(2, 4, 8, 8), sizes_of_whole(32, 32, 2)
    made = []
    for base in (folder, file):
        text = base.text.encode(["a robot on the beach", ""], "cpu")
        made.append((text.states, text.pooled, predict(base.unet, noisy, 500, text, sizes)))
    (states, pooled, prediction), others = made
    assert torch.equal(states, others[0]) and torch.equal(prediction, others[2])
    torch.testing.assert_close(pooled, others[1], rtol=0, atol=0)
