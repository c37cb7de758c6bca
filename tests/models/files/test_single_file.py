"""Single files: round trips, an original implementation, diffusers' own reader."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.export.single_file import write_single_file
from ldm.models.files.single_file import SingleFile, read_single_file
from tests.models.files.kinds import PREDICTIONS, TINY, Written, save_folder
from tests.models.files.ldm_reference import sinusoidal
from tests.models.files.ldm_reference_text import LatentDiffusion, never_in_diffusers

KINDS = [*TINY]


def same(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal(written: Callable[[str], Written], kind: str) -> None:
    tiny = written(kind)
    read: SingleFile = read_single_file(tiny.file)
    assert read.kind == kind and read.about == {"identifier": "sks", "class_noun": "robot"}
    assert read.scheduler.config.prediction_type == PREDICTIONS[kind]
    for part, network in tiny.networks.items():
        same(network, read.parts[part])
        assert not read.parts[part].training
    for name in [name for name in tiny.parts if name.startswith("tokenizer")]:
        ours, theirs = tiny.parts[name], read.parts[name]
        fill: Any = {"padding": "max_length", "max_length": 12}
        assert ours("sks robot", **fill).input_ids == theirs("sks robot", **fill).input_ids
    again = write_single_file(
        read.parts, read.scheduler, 16, tiny.folder / "again.safetensors", torch.float32, {}
    )
    for name, tensor in load_file(again).items():
        assert torch.equal(tensor, tiny.tensors[name]), name


@torch.no_grad()
def numbers_of(tiny: Written, parts: dict[str, Any]) -> dict[str, Tensor]:
    """What diffusers' networks make of fixed inputs."""
    ids, latents, t = inputs(tiny)
    found: dict[str, Tensor] = {}
    more: dict[str, Any] = {}
    context = parts["text_encoder"](ids)[0]
    if tiny.kind == "sdxl":
        first = parts["text_encoder"](ids, output_hidden_states=True).hidden_states[-2]
        second = parts["text_encoder_2"](ids, output_hidden_states=True)
        context = torch.cat([first, second.hidden_states[-2]], dim=-1)
        found["pooled"] = second.text_embeds
        conditions = {"text_embeds": second.text_embeds, "time_ids": torch.arange(12.0).view(2, 6)}
        more["added_cond_kwargs"] = conditions
    found["text"] = context
    found["unet"] = parts["unet"](latents, t, encoder_hidden_states=context, **more).sample
    pictures = latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)
    found["encoded"] = parts["vae"].encode(pictures).latent_dist.parameters
    found["decoded"] = parts["vae"].decode(latents).sample
    return found


@torch.no_grad()
def original_numbers(tiny: Written, model: LatentDiffusion) -> dict[str, Tensor]:
    """What the original's networks make of them."""
    ids, latents, t = inputs(tiny)
    found: dict[str, Tensor] = {}
    first: Any = model.texts[0]
    y = None
    if tiny.kind == "sdxl":
        second: Any = model.texts[1]
        found["pooled"] = second.pooled(ids, tiny.sizes.text[1].words - 1)
        sides = sinusoidal(torch.arange(12.0), 8).view(2, 48)
        y = torch.cat([found["pooled"], sides], dim=1)
        found["text"] = torch.cat([first(ids, layer=-1), second.states(ids)[0]], dim=-1)
    else:
        found["text"] = first.penultimate(ids) if tiny.kind == "sd2" else first(ids)
    found["unet"] = model.unet(latents, t, found["text"], y)
    pictures = latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)
    found["encoded"] = model.first_stage_model.encode(pictures)
    found["decoded"] = model.first_stage_model.decode(latents)
    return found


def inputs(tiny: Written) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    text = tiny.sizes.text[0]
    ids = torch.randint(0, text.words - 2, (2, text.length), generator=draw)
    ids[0, 7], ids[1, 20] = text.words - 1, text.words - 1
    return ids, torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([7.0, 801.0])


@pytest.mark.parametrize("kind", KINDS)
def test_original_loads_strictly_and_gives_the_same_numbers(
    written: Callable[[str], Written], kind: str
) -> None:
    tiny = written(kind)
    model = LatentDiffusion(tiny.sizes).eval()
    own = model.state_dict()
    never = never_in_diffusers(tiny.sizes)
    assert not never & tiny.tensors.keys()
    model.load_state_dict({**tiny.tensors, **{key: own[key] for key in never}}, strict=True)
    ours, theirs = numbers_of(tiny, tiny.parts), original_numbers(tiny, model)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.std() > 1e-3, name
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_own_reader_finds_the_same_weights(
    written: Callable[[str], Written], kind: str
) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    tiny = written(kind)
    folder = save_folder(tiny.parts, tiny.folder / "folder")
    pipeline: Any = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    opened = pipeline.from_single_file(str(tiny.file), config=str(folder), local_files_only=True)
    for part, network in tiny.networks.items():
        same(network, getattr(opened, part))


ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
}


@pytest.mark.parametrize("kind", KINDS)
def test_header_follows_modelspec(written: Callable[[str], Written], kind: str) -> None:
    tiny = written(kind)
    content = tiny.file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + length])["__metadata__"]
    assert told["format"] == "pt" and told["modelspec.sai_model_spec"] == "1.0.0"
    assert told["modelspec.architecture"] == ARCHITECTURES[kind]
    assert told["modelspec.prediction_type"] == ("v" if kind == "sd2" else "epsilon")
    assert told["modelspec.resolution"] == "16x16"
    assert (told["modelspec.title"], told["modelspec.trigger_phrase"]) == ("tiny", "sks robot")
    digest = hashlib.sha256(content[8 + length :]).hexdigest()
    assert told["modelspec.hash_sha256"] == f"0x{digest}"
    assert all(isinstance(value, str) for value in told.values())


def test_numbers_too_large_for_half_precision_are_noticed(
    written: Callable[[str], Written], tmp_path: Path
) -> None:
    parts = {name: part for name, part in written("sd1").parts.items() if name != "scheduler"}
    scheduler, vae = written("sd1").parts["scheduler"], copy.deepcopy(parts["vae"])
    with torch.no_grad():
        vae.decoder.conv_out.bias[0] = 7e4
    parts["vae"] = vae
    out = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match=r"first_stage_model.decoder.conv_out.bias.*bf16"):
        write_single_file(parts, scheduler, 16, out, torch.float16, {})
    assert not any(tmp_path.iterdir()), "nothing is left behind"
    write_single_file(parts, scheduler, 16, out, torch.bfloat16, {})
    assert load_file(out)["first_stage_model.quant_conv.bias"].dtype is torch.bfloat16
