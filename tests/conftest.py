"""Shared fixtures: tiny random Stable Diffusions, built in code, for wiring and parity."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)  # usual in CI: rich, here and in child processes, would draw bars

TINY_RESOLUTION = 32  # VAE factor 4, UNet sample size 8
TINY_LENGTH = 32  # tokens
TINY_WORDS = [
    "sks",
    "a",
    "the",
    "of",
    "drawing",
    "photo",
    "robot",
    "dog",
    "on",
    "beach",
    "in",
    "snow",
]
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give `tiny_base_folder(kind)` -> a diffusers folder, kind "eps", "v" or "sdxl".

    Session-scoped and shared: read only, copy before changing anything in it.
    """
    folders: dict[str, Path] = {}

    def folder(kind: str = "eps") -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("tiny") / kind
            build_tiny_base(folders[kind], kind)
        return folders[kind]

    return folder


@pytest.fixture
def empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written as ever, with plots that nothing is drawn in: drawing takes seconds."""
    from ldm.evaluation.report import plots

    monkeypatch.setattr(plots, "svg", lambda figure, title: f"<svg><title>{title}</title></svg>")


def build_tiny_base(folder: Path, kind: str) -> None:
    """Write a Stable Diffusion of about 60,000 random weights, as diffusers saves it.

    "eps": PNDM scheduler, epsilon, as Stable Diffusion 1; "v": DDIM, v_prediction, as 2; "sdxl":
    Euler, epsilon, two text encoders, text and sizes added to the timestep.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20260131)
        if kind == "sdxl":
            sdxl = StableDiffusionXLPipeline(
                **tiny_sdxl_networks(), scheduler=tiny_scheduler(kind), add_watermarker=False
            )
            sdxl.save_pretrained(folder)
            return
        pipeline = StableDiffusionPipeline(
            **tiny_networks(),
            scheduler=tiny_scheduler(kind),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


def tiny_networks() -> dict[str, Any]:
    """Return tokenizer, text encoder, VAE and UNet, random."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokenizer = tiny_tokenizer(TINY_WORDS)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=TINY_RESOLUTION,
        scaling_factor=0.5,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(tiny_text_config(tokenizer, 16)),
        "vae": vae,
        "unet": UNet2DConditionModel(**TINY_UNET, cross_attention_dim=16),
    }


TINY_UNET: dict[str, Any] = {
    "sample_size": TINY_RESOLUTION // 4,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def tiny_sdxl_networks() -> dict[str, Any]:
    """`tiny_networks`, and beside them a second tokenizer, with ids of its own, and text encoder;
    they read and write 16 + 24 wide states, and pooled ones of width 20."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    second = tiny_tokenizer(reversed(TINY_WORDS), pad_token="!")
    config = tiny_text_config(second, 24, projection_dim=20, hidden_act="gelu")
    return {
        **tiny_networks(),
        "tokenizer_2": second,
        "text_encoder_2": CLIPTextModelWithProjection(config),
        "unet": UNet2DConditionModel(
            **TINY_UNET,
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
    }


def tiny_text_config(tokenizer: Any, width: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TINY_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def tiny_scheduler(kind: str) -> Any:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

    if kind == "eps":
        return PNDMScheduler(**_SCHEDULE, skip_prk_steps=True, steps_offset=1)
    if kind == "v":
        return DDIMScheduler(
            **_SCHEDULE,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
    if kind == "sdxl":
        return EulerDiscreteScheduler(**_SCHEDULE, timestep_spacing="leading", steps_offset=1)
    raise ValueError(f"kind {kind!r} is not eps, v or sdxl")


def tiny_tokenizer(words: Iterable[str], **options: Any) -> Any:
    """Return a byte-complete CLIP tokenizer in which each of `words` is one token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        left, *others = [*word[:-1], f"{word[-1]}</w>"]
        for right in others:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in vocabulary:
                vocabulary.append(left)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=TINY_LENGTH,
        **options,
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file in place."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
