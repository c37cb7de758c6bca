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
    """Give `tiny_base_folder(kind)` -> a diffusers folder, kind "eps" or "v".

    Session-scoped and shared: read only, copy before changing anything in it.
    """
    folders: dict[str, Path] = {}

    def folder(kind: str = "eps") -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("tiny") / kind
            build_tiny_base(folders[kind], kind)
        return folders[kind]

    return folder


def build_tiny_base(folder: Path, kind: str) -> None:
    """Write a Stable Diffusion of about 60,000 random weights, as diffusers saves it.

    "eps": PNDM scheduler, epsilon, as Stable Diffusion 1; "v": DDIM, v_prediction, as 2.
    """
    from diffusers import StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20260131)
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
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer(TINY_WORDS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TINY_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=TINY_RESOLUTION,
        scaling_factor=0.5,
    )
    unet = UNet2DConditionModel(
        sample_size=TINY_RESOLUTION // 4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text),
        "vae": vae,
        "unet": unet,
    }


def tiny_scheduler(kind: str) -> Any:
    from diffusers import DDIMScheduler, PNDMScheduler

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
    raise ValueError(f"kind {kind!r} is not eps or v")


def tiny_tokenizer(words: Iterable[str]) -> Any:
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
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file in place."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
