"""An adapter's files: every key used by the readers, and the same predictions."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ldm.errors import UserError
from ldm.export import diffusers_files, embedding_file, kohya_file, write_files
from ldm.export.lora import LORA_METADATA, TensorFile
from ldm.models.adapters import Adapter, add_adapters
from ldm.models.adapters.files import add_lora_files
from ldm.models.adapters.kohya import layer_names
from ldm.models.base import BaseModel, load_base
from ldm.models.files.keys import original_layers
from scripts import export
from tests.models.test_adapters import disturb, networks_of, predict, settings_of

TinyFolder = Callable[[str], Path]
ABOUT = {"identifier": "sks", "class_noun": "robot", "base": "tiny", "run": "a-run", "step": 4}


def adapted(folder: Path, kind: str) -> tuple[BaseModel, dict[str, Adapter], Tensor]:
    """A base with adapters as if trained, and its prediction."""
    base = load_base(folder)
    adapters = add_adapters(networks_of(base), settings_of(kind))
    disturb(adapters)
    with torch.no_grad():
        return base, adapters, predict(base)


def read_by_diffusers(folder: Path, file: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return pipeline


def prediction_of(pipeline: Any, base: BaseModel) -> Tensor:
    """Of a pipeline's UNet and text encoder, asked as `predict` asks."""
    base.unet, base.text_encoder = pipeline.unet, pipeline.text_encoder
    with torch.no_grad():
        return predict(base)


def used_tensors(pipeline: Any) -> list[Tensor]:
    """Every adapter tensor in its networks."""
    parts = (pipeline.unet, pipeline.text_encoder)
    return [p for part in parts for name, p in part.named_parameters() if ".lora_" in name]


@pytest.mark.parametrize("kind", ("lora", "rslora", "dora"))
@pytest.mark.parametrize("naming", ("diffusers", "kohya"))
def test_diffusers_reads_every_key(
    tiny_base_folder: TinyFolder,
    tmp_path: Path,
    kind: str,
    naming: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With another rank in the text encoder, alpha that is no rank, and convolutions."""
    folder = tiny_base_folder("eps")
    base, adapters, wanted = adapted(folder, kind)
    if naming == "diffusers":
        files = dict(diffusers_files(adapters))
    else:
        files = {"robot.safetensors": kohya_file(adapters, "sd1", ABOUT)}
    write_files(tmp_path, files, torch.float32)
    (name,) = files
    pipeline = read_by_diffusers(folder, tmp_path / name)
    got = prediction_of(pipeline, base)
    if (kind, naming) == ("dora", "kohya"):
        # It says so and leaves DoRA's scales out: diffusers' own naming is for those.
        assert (got - wanted).abs().max() > 1e-3
        return
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    given = [t for key, t in load_file(tmp_path / name).items() if not key.endswith(".alpha")]
    used = used_tensors(pipeline)
    assert len(used) == len(given)
    assert sum(t.sum().item() for t in used) == pytest.approx(
        sum(float(t.sum()) for t in given), abs=1e-3
    )
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def kohya_weights(file: Path, base: BaseModel) -> dict[str, Tensor]:
    """An independent reader: the merged weights by layer, from the names and formulas of the field.

    https://github.com/comfyanonymous/ComfyUI/tree/master/comfy/weight_adapter, written out.
    """
    tensors = {key: tensor.double() for key, tensor in load_file(file).items()}
    layers = {}
    for network, prefix in ((base.unet, "lora_unet_"), (base.text_encoder, "lora_te_text_model_")):
        for name, module in network.named_modules():
            layers[prefix + name.replace(".", "_")] = (name, module)
    merged = {}
    for full in dict.fromkeys(key.partition(".")[0] for key in tensors):
        own = {k.partition(".")[2]: t for k, t in tensors.items() if k.startswith(f"{full}.")}
        name, module = layers[full]
        weight = module.weight.detach().double()
        alpha, rank = float(own.pop("alpha")), None
        if "lora_down.weight" in own:
            down, up = own.pop("lora_down.weight"), own.pop("lora_up.weight")
            rank, delta = down.shape[0], up.flatten(1) @ down.flatten(1)
        elif "hada_w1_a" in own:
            rank = own["hada_w1_b"].shape[0]
            first = own.pop("hada_w1_a") @ own.pop("hada_w1_b")
            delta = first * (own.pop("hada_w2_a") @ own.pop("hada_w2_b"))
        else:
            second = own.pop("lokr_w2", None)
            if second is None:
                rank = own["lokr_w2_b"].shape[0]
                second = own.pop("lokr_w2_a") @ own.pop("lokr_w2_b")
            first = own.pop("lokr_w1")
            second = second.reshape(second.shape[0], -1, *weight.shape[2:])
            delta = torch.kron(first.reshape(*first.shape, *[1] * (weight.ndim - 2)), second)
        weight = weight + (alpha / rank if rank else 1.0) * delta.reshape(weight.shape)
        if (scale := own.pop("dora_scale", None)) is not None:
            assert scale.shape == (weight.shape[0], *[1] * (weight.ndim - 1))
            norm = weight.flatten(1).norm(dim=1).reshape(scale.shape)
            weight = weight * scale / norm
        assert not own, f"{full} has more: {list(own)}"
        merged[f"{full} {name}"] = weight
    return merged


@pytest.mark.parametrize("kind", ("lora", "dora", "rslora", "loha", "lokr"))
def test_kohyas_naming_by_an_independent_reader(
    tiny_base_folder: TinyFolder, tmp_path: Path, kind: str
) -> None:
    base, adapters, _ = adapted(tiny_base_folder("eps"), kind)
    file = kohya_file(adapters, "sd1", ABOUT)
    write_files(tmp_path, {"robot.safetensors": file}, torch.float32)
    read = kohya_weights(tmp_path / "robot.safetensors", load_base(tiny_base_folder("eps")))
    assert len(read) == sum(len(adapter.layers) for adapter in adapters.values())
    for adapter in adapters.values():
        adapter.merge()
    for full, weight in read.items():
        network, name = full.split(" ")
        part = base.unet if network.startswith("lora_unet") else base.text_encoder
        ours = part.get_submodule(name).weight.double()
        torch.testing.assert_close(ours, weight, rtol=0, atol=1e-5)


def test_metadata(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    base, adapters, _ = adapted(tiny_base_folder("eps"), "rslora")
    kohya = kohya_file(adapters, "sd1", ABOUT)
    write_files(tmp_path, {"k.safetensors": kohya, **diffusers_files(adapters)}, torch.float16)
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        told = file.metadata()
    tensors = load_file(tmp_path / "k.safetensors")
    (alpha,) = {float(tensors[key]) for key in tensors if "unet" in key and "alpha" in key}
    assert alpha == pytest.approx(2.0 * 4**0.5), "alpha / sqrt(rank), times the rank"
    assert tensors["lora_unet_conv_in.lora_up.weight"].dtype == torch.float16
    assert told["ss_network_dim"] == "4" and told["ss_network_alpha"] == "2.0"
    assert told["ss_base_model_version"] == "sd_v1" and told["ss_v2"] == "False"
    assert told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert told["modelspec.trigger_phrase"] == "sks robot" and told["ss_steps"] == "4"
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        told = json.loads(file.metadata()[LORA_METADATA])
    assert told["unet.use_rslora"] and told["text_encoder.r"] == 2


@pytest.mark.parametrize("kind", ("loha", "lokr", "oft"))
def test_peft_reads_the_others(tiny_base_folder: TinyFolder, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    folder = tiny_base_folder("eps")
    base, adapters, wanted = adapted(folder, kind)
    write_files(tmp_path, diffusers_files(adapters), torch.float32)
    plain = load_base(folder)
    plain.unet = PeftModel.from_pretrained(plain.unet, tmp_path / "unet")
    plain.text_encoder = PeftModel.from_pretrained(plain.text_encoder, tmp_path / "text_encoder")
    with torch.no_grad():
        torch.testing.assert_close(predict(plain), wanted, rtol=0, atol=1e-5)
    if kind == "oft":
        with pytest.raises(UserError, match="no OFT of the kind"):
            kohya_file(adapters, "sd1", ABOUT)


def xl_unet() -> UNet2DConditionModel:
    """As SDXL's: where its blocks have attention, and conditions of size; tiny."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


def test_names_of_stable_diffusion_xl(tmp_path: Path) -> None:
    """Some that stand in files of sd-scripts; and diffusers finds every layer by its name."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    unet = xl_unet()
    known = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.4.1."
        "transformer_blocks.0.attn1.to_q",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
        "up_blocks.0.resnets.2.conv_shortcut": "output_blocks.2.0.skip_connection",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "up_blocks.2.resnets.2.time_emb_proj": "output_blocks.8.0.emb_layers.1",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    assert original_layers(unet.state_dict(), known) == known
    layer = "text_model.encoder.layers.0.mlp.fc1"
    for number, part, name in (
        ("1", "text_encoder", layer),
        ("2", "text_encoder_2", layer.removeprefix("text_model.")),
    ):
        named = layer_names(part, unet, [name], "sdxl")
        assert named == {name: f"lora_te{number}_text_model_encoder_layers_0_mlp_fc1"}
    targets = ["to_q", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv_shortcut"]
    adapters = add_adapters({"unet": unet}, settings_of("lora", targets=targets))
    disturb(adapters)
    write_files(tmp_path, {"xl.safetensors": kohya_file(adapters, "sdxl", ABOUT)}, torch.float32)
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(
        tmp_path / "xl.safetensors", unet_config=unet.config
    )
    plain = xl_unet()
    plain.load_state_dict(_plain_state(adapters["unet"]))
    plain.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 16),
            "time_ids": torch.randn(1, 6),
        },
    }
    with torch.no_grad():
        wanted, got = unet(**inputs).sample, plain(**inputs).sample
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def _plain_state(adapter: Adapter) -> dict[str, Tensor]:
    """The untouched weights of a network with an adapter in it."""
    return {
        key.replace(".base_layer", ""): tensor
        for key, tensor in adapter.network.state_dict().items()
        if ".default" not in key
    }


def test_the_identifiers_embedding_is_a_textual_inversion(
    tiny_base_folder: TinyFolder, tmp_path: Path
) -> None:
    base = load_base(tiny_base_folder("eps"))
    (token,) = base.tokenizer("sks", add_special_tokens=False).input_ids
    embedding = base.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        embedding[token] = torch.linspace(-1, 1, 16)
        wanted = predict(base)  # of a prompt with sks
    file = embedding_file([embedding], [[token]], "<sks>")
    write_files(tmp_path, {"sks.safetensors": file}, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_folder("eps"), safety_checker=None)
    pipeline.load_textual_inversion(tmp_path, weight_name="sks.safetensors")
    ids = pipeline.tokenizer(
        ["a drawing of <sks> robot", "a dog"],
        padding="max_length",
        max_length=32,
        return_tensors="pt",
    ).input_ids
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        text = pipeline.text_encoder(ids)[0]
        got = pipeline.unet(noisy, torch.tensor([3, 700]), encoder_hidden_states=text).sample
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("naming", ("diffusers", "kohya"))
def test_several_files_are_added_with_weights(
    tiny_base_folder: TinyFolder, tmp_path: Path, naming: str
) -> None:
    """W + 0.7 of one change + 0.5 of the other, and nothing of peft is left."""
    folder = tiny_base_folder("eps")
    plain = load_base(folder)
    start = {k: t.clone() for k, t in plain.unet.state_dict().items()}
    expected = dict(start)
    words = []
    for number, share in enumerate((0.7, 0.5)):
        base = load_base(folder)
        adapters = add_adapters(networks_of(base), settings_of("lora"))
        disturb(adapters, seed=number)
        if naming == "diffusers":
            (file,) = diffusers_files(adapters).values()
        else:
            file = kohya_file(adapters, "sd1", ABOUT)
        write_files(tmp_path, {f"{number}.safetensors": file}, torch.float32)
        words.append(f"{tmp_path / str(number)}.safetensors:{share}")
        for adapter in adapters.values():
            adapter.merge()
        for key, tensor in base.unet.state_dict().items():
            expected[key] = expected[key] + share * (tensor - start[key])
    asked = ["--model", str(folder), "--format", "diffusers", "--out", str(tmp_path / "both")]
    assert export.main([*asked, "--lora", *words]) == 0
    merged = load_base(tmp_path / "both").unet.state_dict()
    assert merged.keys() == expected.keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-5)


def test_dora_in_kohyas_naming_is_read_back(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    """Whole and by half; and with numbers for columns, which LyCORIS' older files have."""
    folder, file = tiny_base_folder("eps"), tmp_path / "dora.safetensors"
    trained, adapters, _ = adapted(folder, "dora")
    written = kohya_file(adapters, "sd1", ABOUT)
    write_files(tmp_path, {file.name: written}, torch.float32)
    for adapter in adapters.values():
        adapter.merge()
    start = load_base(folder)
    for share in (1.0, 0.5):
        base = load_base(folder)
        add_lora_files(base, [(file, share)])
        for name, network in networks_of(base).items():
            before, after = (networks_of(b)[name].state_dict() for b in (start, trained))
            for key, tensor in network.state_dict().items():
                wanted = before[key] + share * (after[key] - before[key])
                torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-5)
    full, layer = "lora_unet_conv_in", start.unet.conv_in
    tensors = {key: t for key, t in written.tensors.items() if key.startswith(f"{full}.")}
    up, down = (tensors[f"{full}.lora_{one}.weight"].double() for one in ("up", "down"))
    tensors[f"{full}.dora_scale"] = torch.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    write_files(tmp_path, {file.name: TensorFile(tensors)}, torch.float32)
    changed = layer.weight.double() + 0.5 * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    add_lora_files(start, [(file, 1.0)])
    for place in range(4):
        wanted = (place + 1) * changed[:, place] / changed[:, place].square().sum().sqrt()
        torch.testing.assert_close(layer.weight[:, place].double(), wanted, rtol=0, atol=1e-5)


def test_files_that_do_not_fit(
    tiny_base_folder: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_base_folder("eps")
    torch.manual_seed(0)
    unet = xl_unet()
    wide = add_adapters({"unet": unet}, settings_of("lora"))
    dora = add_adapters({"unet": xl_unet()}, settings_of("dora"))
    files: dict[str, TensorFile | str | bytes] = {
        "xl.safetensors": kohya_file(wide, "sdxl", ABOUT),
        "dora.safetensors": kohya_file(dora, "sdxl", ABOUT),
        "text.safetensors": "no tensors",
    }
    write_files(tmp_path, files, torch.float32)
    words = ["--model", str(folder), "--format", "diffusers", "--out", str(tmp_path / "out")]
    for name, said in {
        "xl": "does not fit",
        "dora": "it is of a kind or for a model that is not read here",
        "text": "no readable safetensors file",
        "none": "no such file; give a LoRA as FILE or FILE:WEIGHT",
    }.items():
        assert export.main([*words, "--lora", f"{tmp_path / name}.safetensors:0.5"]) == 2
        assert said in capsys.readouterr().err, name
    assert not (tmp_path / "out").exists()
