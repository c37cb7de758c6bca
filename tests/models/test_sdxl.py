"""SDXL: two text encoders, of which not everything is read, and sizes beside the timestep."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.data.sizes import sizes_of_whole
from ldm.errors import UserError
from ldm.models.base import BaseModel, frozen_copy, load_base
from ldm.models.frozen import FrozenPrediction
from ldm.models.text import TextEmbedding
from ldm.models.trainable import count_unread, prepare_training
from ldm.models.unet import predict
from tests.conftest import edit_json

TinyFolder = Callable[[str], Path]
PROMPTS = ["a drawing of sks robot", "a dog on the beach", "a drawing of sks robot"]


@pytest.fixture
def base(tiny_base_folder: TinyFolder) -> BaseModel:
    return load_base(tiny_base_folder("sdxl"))


@pytest.fixture
def folder(tiny_base_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_base_folder("sdxl"), tmp_path / "base"))


def test_what_is_loaded(base: BaseModel, tiny_base_folder: TinyFolder) -> None:
    assert list(base.networks) == ["unet", "text_encoder", "text_encoder_2"]
    assert base.zero_empty_prompt and base.prediction_type == "epsilon"
    ids = [tokenizer("sks").input_ids for tokenizer in base.text.tokenizers]
    assert ids[0] != ids[1], "each encoder has its own tokenizer"
    half = load_base(tiny_base_folder("sdxl"), dtype=torch.bfloat16)
    assert {network.dtype for network in half.networks.values()} == {torch.bfloat16}
    assert half.vae.dtype == torch.float32
    other = load_base(tiny_base_folder("v"))
    assert list(other.networks) == ["unet", "text_encoder"] and not other.zero_empty_prompt


def test_the_fingerprint_covers_what_was_loaded(base: BaseModel, folder: Path) -> None:
    assert load_base(folder).fingerprint == base.fingerprint
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    encoded = load_base(folder)
    assert encoded.fingerprint != base.fingerprint
    assert encoded.text.encode([""], "cpu").states.abs().max() > 0
    edit_json(folder / "text_encoder_2" / "config.json", note="changed")
    changed = load_base(folder)
    assert changed.fingerprint != encoded.fingerprint
    assert changed.vae_fingerprint == base.vae_fingerprint


def test_a_frozen_copy_has_both_encoders_of_its_own(base: BaseModel) -> None:
    prepare_training(base, True, False)
    copy = frozen_copy(base)
    for name, network in copy.networks.items():
        places = {weight.data_ptr() for weight in base.networks[name].parameters()}
        assert not any(weight.data_ptr() in places for weight in network.parameters())
        assert not any(weight.requires_grad for weight in network.parameters())
    apart = base.with_own_tokenizers()
    for one, two in zip(apart.text.tokenizers, base.text.tokenizers, strict=True):
        assert one._tokenizer is not two._tokenizer
    assert apart.text_encoder_2 is base.text_encoder_2


# --- text


def test_text_is_diffusers(base: BaseModel, tiny_base_folder: TinyFolder) -> None:
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base_folder("sdxl"))
    with torch.no_grad():
        given: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1}
        theirs = pipeline.encode_prompt(PROMPTS, **given)
        negative = pipeline.encode_prompt(PROMPTS, negative_prompt=["snow"] * 3, **given)
        ours = base.text.encode([*PROMPTS, "", "snow"], "cpu")
    assert ours.pooled is not None
    assert ours.states.shape == (5, 32, 16 + 24) and ours.pooled.shape == (5, 20)
    wanted, zeros, pooled, pooled_zeros = theirs
    pairs = [(ours.states[:3], wanted), (ours.states[3], zeros[0]), (ours.pooled[:3], pooled)]
    pairs += [(ours.pooled[3], pooled_zeros[0]), (ours.states[4], negative[1][0])]
    for one, two in [*pairs, (ours.pooled[4], negative[3][0])]:
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_embeddings_are_chosen_and_joined_with_what_is_pooled() -> None:
    text = TextEmbedding(torch.arange(3.0).view(3, 1, 1), torch.arange(3.0).view(3, 1))
    joined = TextEmbedding.cat([text[1:], text[torch.tensor([0])]]).to(torch.float64)
    assert joined.pooled is not None and joined.pooled.dtype == torch.float64
    assert joined.states.flatten().tolist() == joined.pooled.flatten().tolist() == [1, 2, 0]


def gradients(base: BaseModel, prompts: list[str] = PROMPTS) -> dict[str, Tensor | None]:
    latents = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = base.text.encode(prompts, "cpu")
    sizes = sizes_of_whole(32, 32, len(prompts))
    predict(base.unet, latents, torch.tensor([500]), text, sizes).square().mean().backward()
    modules = nn.ModuleDict(base.networks)
    return {name: weight.grad for name, weight in modules.named_parameters()}


def test_every_parameter_that_is_trained_is_read(base: BaseModel) -> None:
    """And those that are not are the first encoder's last layer and final norm."""
    prepare_training(base, True, False)
    found = gradients(base)
    without = {name for name, gradient in found.items() if gradient is None}
    names = [name for name in found if name.startswith("text_encoder.")]
    unread = [name for name in names if "encoder.layers.1." in name or "final_layer" in name]
    assert without == set(unread)
    weights = dict(nn.ModuleDict(base.networks).named_parameters())
    assert without == {name for name, weight in weights.items() if not weight.requires_grad}
    assert count_unread(base) == sum(weights[name].numel() for name in without) > 0


def test_a_batch_of_empty_prompts_still_reaches_every_trained_parameter(base: BaseModel) -> None:
    """Or processes would wait for one another."""
    prepare_training(base, True, False)
    trained = {name for name, weight in gradients(base).items() if weight is not None}
    for network in base.networks.values():
        network.zero_grad(set_to_none=True)
    found = gradients(base, ["", ""])
    assert {name for name, gradient in found.items() if gradient is not None} == trained
    text = [gradient for name, gradient in found.items() if name.startswith("text_encoder")]
    assert all(not gradient.any() for gradient in text if gradient is not None)


def test_checkpointing_changes_no_gradient(tiny_base_folder: TinyFolder) -> None:
    found = []
    for checkpointing in (False, True):
        base = load_base(tiny_base_folder("sdxl"))
        prepare_training(base, True, checkpointing)
        calls: list[int] = []
        layer: Any = base.text.encoders[1].text_model.encoder.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(gradients(base))
        assert len(calls) == 1 + checkpointing
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_embedding_alone_is_that_of_both(base: BaseModel) -> None:
    trained = prepare_training(base, False, False, embedding=True)
    names = [n for n, p in nn.ModuleDict(trained).named_parameters() if p.requires_grad]
    text = [name for name in names if name.startswith("text_encoder")]
    assert len(text) == 2 and all(name.endswith("token_embedding.weight") for name in text)


# --- sizes and pooled text in the UNet


@torch.no_grad()
def test_text_and_sizes_reach_the_unet_as_diffusers_gives_them(base: BaseModel) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, sizes = torch.tensor([1, 500, 999]), torch.arange(18.0).view(3, 6) * 40
    text = base.text.encode(PROMPTS, "cpu")
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    wanted = base.unet(latents, t, text.states, added_cond_kwargs=added).sample
    found = predict(base.unet, latents, t, text, sizes)
    assert torch.equal(found, wanted)
    taught = FrozenPrediction(frozen_copy(base))(latents, t, PROMPTS, sizes)
    torch.testing.assert_close(taught, wanted, rtol=1e-4, atol=1e-5)
    assert text.pooled is not None
    for other in ((text, sizes + 40), (TextEmbedding(text.states, text.pooled.roll(1, 0)), sizes)):
        assert (predict(base.unet, latents, t, *other) - wanted).abs().max() > 1e-4


# --- what is refused


def transformer(folder: Path) -> None:
    (folder / "transformer").mkdir()


def refiner(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")


def scored(folder: Path) -> None:
    edit_json(folder / "model_index.json", requires_aesthetics_score=True)


def unet_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "unet" / "config.json", **changes)


def no_second(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")


def no_second_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_2" / "tokenizer.json").unlink()


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def shorter(folder: Path) -> None:
    edit_json(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=16)


def without_projection(folder: Path) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(folder / "text_encoder_2").save_pretrained(
        folder / "text_encoder_2"
    )


def first_twice(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_2")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    tokens = json.loads((folder / "tokenizer_2" / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokens["model"]["vocab"]
    vocabulary["more"] = max(vocabulary.values()) + 1
    (folder / "tokenizer_2" / "tokenizer.json").write_text(json.dumps(tokens), "utf-8")


@pytest.mark.parametrize(
    "change, message",
    [
        (transformer, "Stable Diffusion 3 or Flux"),
        (refiner, "SDXL refiner"),
        (scored, "SDXL refiner"),
        (unet_config(in_channels=9), "inpainting"),
        (unet_config(in_channels=5), "depth"),
        (unet_config(in_channels=8), "picture editing"),
        (unet_config(class_embed_type="projection"), "unCLIP"),
        (unet_config(addition_embed_type="text_image"), "addition_embed_type 'text_image'"),
        (unet_config(addition_embed_type=None), "addition_embed_type None and 2 text encoders"),
        (no_second, r"lacks text_encoder_2/config\.json, text_encoder_2 weights"),
        (no_second_tokenizer, r"lacks tokenizer_2/vocab\.json"),
        (no_index, r"lacks model_index\.json"),
        (shorter, r"tokenizers cut at \[32, 16\]"),
        (without_projection, r"text_encoder_2: weights .*missing_keys.*text_projection"),
        (first_twice, "a tokenizer has 545 tokens, its text encoder 544"),
    ],
)
def test_other_kinds_and_parts_that_do_not_fit(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        load_base(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["cross_attention_dim", "projection_class_embeddings_input_dim"])
def test_a_unet_that_reads_other_widths(base: BaseModel, key: str, folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = {**base.unet.config, key: 52}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=r"52, (its text encoders write 40|not 68)"):
        load_base(folder)


@pytest.mark.parametrize("channels, word", [(9, "inpainting"), (5, "depth")])
def test_kinds_of_stable_diffusion_are_told_too(
    tiny_base_folder: TinyFolder, tmp_path: Path, channels: int, word: str
) -> None:
    folder = Path(shutil.copytree(tiny_base_folder("v"), tmp_path / "base"))
    edit_json(folder / "unet" / "config.json", in_channels=channels)
    with pytest.raises(UserError, match=rf"a model for {word} \(its UNet takes {channels}"):
        load_base(folder)
