"""Runs on the true architectures with random weights: does it fit, and as predicted?

    python -m tests.full_size sd15 configs/lora.yaml data.resolution=512 training.batch=1

Builds the base once below --folder (2 to 7 GB), trains two steps with what stands on the command
line, and prints predicted and measured peak memory and the time of a step.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY_WORDS, tiny_scheduler, tiny_tokenizer
from tests.workspace import Workspace

ROOT = Path(__file__).parents[1]
KINDS = ("sd15", "sd21", "sdxl")
LENGTH, VOCABULARY = 77, 49408  # of CLIP's text encoders
# From the configurations that the models were published with.
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP_L |= {"num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
CLIP_H |= {"num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
CLIP_G |= {"num_attention_heads": 20}
TEXTS = {"sd15": (CLIP_L,), "sd21": (CLIP_H,), "sdxl": (CLIP_L, CLIP_G)}


def build(folder: Path, kind: str) -> Path:
    """A diffusers folder of random weights in float16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    tokenizer = tiny_tokenizer(TINY_WORDS)
    tokenizer.model_max_length = LENGTH
    unet = UNet2DConditionModel(**UNETS[kind])
    vae = AutoencoderKL(**VAE, sample_size=8 * unet.config.sample_size)
    parts = {"unet": unet, "vae": vae, "tokenizer": tokenizer}
    for number, config in enumerate(TEXTS[kind]):
        parts["text_encoder" + ("_2" if number else "")] = _text_encoder(config, bool(number))
    scheduler = tiny_scheduler("v" if kind == "sd21" else "eps")
    _pipeline(kind, scheduler=scheduler, **parts).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)
    return folder


def _text_encoder(config: dict[str, int], projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    act = "quick_gelu" if config is CLIP_L else "gelu"
    full = CLIPTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_act=act,
        projection_dim=config["hidden_size"],
        **config,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(full)


def _pipeline(kind: str, **parts: Any) -> Any:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if kind == "sdxl":
        return StableDiffusionXLPipeline(tokenizer_2=parts["tokenizer"], **parts)
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def run(folder: Path, kind: str, words: list[str]) -> dict[str, Any]:
    """Two steps in a process of its own: predicted and measured GiB, seconds of the second step."""
    place = Workspace(folder / f"{kind}-run", build(folder / kind, kind))
    command = [sys.executable, str(ROOT / "main.py"), *place.words(*words)]
    plan = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    predicted = re.search(r"^memory +about ([\d.]+) GiB", plan.stdout, re.MULTILINE)
    if predicted is None:
        raise SystemExit(plan.stderr)
    subprocess.run(command, cwd=ROOT, check=True)
    newest = max(place.logs.iterdir())
    with (newest / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    measured = float(last["peak_memory_gib"])
    return {
        "base": kind,
        "options": " ".join(words),
        "predicted_gib": float(predicted[1]),
        "measured_gib": round(measured, 2),
        "seconds_per_step": round(float(last["seconds"]), 1),
        "run": newest.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/full_size"))
    args, words = parser.parse_known_args()
    print(json.dumps(run(args.folder, args.kind, words)))


if __name__ == "__main__":
    main()
