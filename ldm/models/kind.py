"""Which kind of model a diffusers folder holds, told by its configurations before weights load."""

import json
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.models.folder import INDEX, PARTS

SUPPORTED = "Stable Diffusion 1.x, 2.x and SDXL base models are supported"
# What a UNet takes beside the 4 channels of noisy latents.
_CHANNELS = {5: "depth", 7: "upscaling", 8: "picture editing", 9: "inpainting"}


def is_sdxl(folder: Path) -> bool:
    """Whether the folder is SDXL, with two text encoders, and no Stable Diffusion 1.x or 2.x.

    A configuration that is missing or damaged is passed over: loading will name it. UserError: a
    model of another kind.
    """
    if (folder / "transformer").is_dir():
        raise _other(folder, "a transformer, such as Stable Diffusion 3 or Flux")
    if not any((folder / part).is_dir() for part in PARTS):
        raise UserError(
            f"base model {folder}: not a diffusers folder (it has none of {', '.join(PARTS)})"
        )
    unet = _config(folder / "unet" / "config.json")
    added, second = unet.get("addition_embed_type"), (folder / "text_encoder_2").is_dir()
    scored = _config(folder / INDEX).get("requires_aesthetics_score")
    if scored or (second and not (folder / "text_encoder").is_dir()):
        raise _other(folder, "an SDXL refiner, which only finishes what the base model began")
    if purpose := _CHANNELS.get(unet.get("in_channels", 4)):
        raise _other(
            folder, f"a model for {purpose} (its UNet takes {unet['in_channels']} channels)"
        )
    if unet.get("class_embed_type"):
        raise _other(folder, "a model that takes classes or pictures beside text (unCLIP)")
    if added not in (None, "text_time") or (second and added is None):
        raise _other(
            folder,
            f"a UNet with addition_embed_type {added!r} and {1 + second} text encoders",
        )
    return added is not None


def zeroes_empty_prompt(folder: Path) -> bool:
    """What an SDXL folder's model_index.json says of the empty prompt; true where it does not."""
    return bool(_config(folder / INDEX).get("force_zeros_for_empty_prompt", True))


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _other(folder: Path, what: str) -> UserError:
    return UserError(f"base model {folder}: {what}; {SUPPORTED}")
