"""Tiny random models of every kind: diffusers' parts, and the original's sizes that they have."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ldm.export.single_file import write_single_file
from ldm.models.files.keys import LAYOUTS
from tests.conftest import TINY_LENGTH, TINY_WORDS, tiny_tokenizer
from tests.models.files.ldm_reference import Sizes, Text

WORDS = len(tiny_tokenizer(TINY_WORDS))
_CLIP = Text(16, 2, 2, words=WORDS, length=TINY_LENGTH)
_SMALL: dict[str, Any] = {"groups": 8, "vae_channels": 8, "vae_mult": (1, 2), "vae_layers": 1}
TINY = {
    "sd1": Sizes(16, (1, 2), (1, 0), (2, 2), 16, False, (_CLIP,), **_SMALL),
    "sd2": Sizes(
        *(16, (1, 2), (1, 0), (2, 4), 24, True),
        (Text(24, 3, 2, True, 24, WORDS, TINY_LENGTH),),
        **_SMALL,
    ),
    "sdxl": Sizes(
        *(16, (1, 2, 2), (0, 1, 2), (2, 4, 4), 40, True),
        (_CLIP, Text(24, 3, 2, True, 24, WORDS, TINY_LENGTH)),
        label=24 + 6 * 8,
        **_SMALL,
    ),
}
PREDICTIONS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}


def tiny_parts(kind: str) -> dict[str, Any]:
    """unet, vae, text_encoder, tokenizer, scheduler; of "sdxl" text_encoder_2, tokenizer_2 too."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    sizes = TINY[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20260201)
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet_config(sizes)),
            "vae": AutoencoderKL(**vae_config(sizes)),
        }
        for number, text in enumerate(sizes.text):
            suffix = "_2" if number else ""
            network = CLIPTextModelWithProjection if number else CLIPTextModel
            parts[f"text_encoder{suffix}"] = network(text_config(text, alone=len(sizes.text) == 1))
            tokenizer = tiny_tokenizer(TINY_WORDS)
            tokenizer.pad_token = "!" if text.open_clip else "<|endoftext|>"
            parts[f"tokenizer{suffix}"] = tokenizer
        for part in (parts["unet"], parts["vae"]):  # norms are ones and zeros when they are made
            for weight in part.parameters():
                torch.nn.init.normal_(weight, std=0.2)
    parts["scheduler"] = DDIMScheduler(
        prediction_type=PREDICTIONS[kind], clip_sample=False, beta_schedule="scaled_linear"
    )
    for part in ("unet", "vae"):
        parts[part].eval()
    return parts


def unet_config(sizes: Sizes) -> dict[str, Any]:
    attends = [depth > 0 for depth in sizes.depth]
    xl = sizes.label is not None
    return {
        "sample_size": 8,
        "block_out_channels": [sizes.channels * mult for mult in sizes.mult],
        "down_block_types": ["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in attends[::-1]],
        "layers_per_block": sizes.layers,
        "transformer_layers_per_block": [max(depth, 1) for depth in sizes.depth] if xl else 1,
        "cross_attention_dim": sizes.context,
        "attention_head_dim": list(sizes.heads),
        "norm_num_groups": sizes.groups,
        "use_linear_projection": sizes.linear,
        "addition_embed_type": "text_time" if xl else None,
        "addition_time_embed_dim": 8 if xl else None,
        "projection_class_embeddings_input_dim": sizes.label,
    }


def vae_config(sizes: Sizes) -> dict[str, Any]:
    levels = len(sizes.vae_mult)
    return {
        "block_out_channels": [sizes.vae_channels * mult for mult in sizes.vae_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": sizes.vae_layers,
        "norm_num_groups": sizes.groups,
        "sample_size": 16,
    }


def text_config(text: Text, alone: bool) -> Any:
    """Alone, OpenCLIP's encoder is read at its last layer but one, so diffusers leaves out one."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=text.words,
        hidden_size=text.width,
        intermediate_size=4 * text.width,
        num_hidden_layers=text.layers - (1 if text.open_clip and alone else 0),
        num_attention_heads=text.heads,
        max_position_embeddings=text.length,
        hidden_act="gelu" if text.open_clip else "quick_gelu",
        projection_dim=text.projection or text.width,
        bos_token_id=text.words - 2,
        eos_token_id=text.words - 1,
        pad_token_id=text.words - 1,
    )


def save_folder(parts: dict[str, Any], folder: Path) -> Path:
    """Write the parts as a diffusers folder."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if "text_encoder_2" in parts:
        StableDiffusionXLPipeline(**parts).save_pretrained(folder)
        return folder
    none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    StableDiffusionPipeline(**parts, **none, requires_safety_checker=False).save_pretrained(folder)
    return folder


class Written:
    """A tiny model of a kind, and the single file that was made of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.sizes = kind, folder, TINY[kind]
        self.parts = tiny_parts(kind)
        self.networks = {part: self.parts[part] for part in LAYOUTS[kind]}  # type: ignore[index]
        about = {"identifier": "sks", "class_noun": "robot"}
        modules = {name: part for name, part in self.parts.items() if name != "scheduler"}
        self.file = write_single_file(
            modules, self.parts["scheduler"], 16, folder / "tiny.safetensors", torch.float32, about
        )
        self.tensors = load_file(self.file)
