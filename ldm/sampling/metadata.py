"""A picture's provenance, in two text chunks of the PNG: "ldm" (JSON) and "parameters".

"parameters" is the format that stable-diffusion-webui (A1111) writes and many tools read; readers
of it are easily confused by prompts, so "ldm" is the one to trust.
"""

import functools
import json
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import UserError
from ldm.sampling.samplers import SAMPLERS

JSON_CHUNK = "ldm"
TEXT_CHUNK = "parameters"
_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def png_info(settings: Mapping[str, Any]) -> PngInfo:
    """Return both chunks for `Image.save(pnginfo=...)`.

    `settings` holds plain values: prompt, negative, steps, sampler, scale, rescale, seed, width,
    height, model (its name), fingerprint, and whatever else; all of it and the library versions
    go into the JSON chunk.
    """
    info = PngInfo()
    info.add_text(JSON_CHUNK, json.dumps({**settings, "versions": versions()}))
    info.add_text(TEXT_CHUNK, parameters_text(settings))
    return info


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the JSON chunk of a picture made here. UserError if it cannot be read or has none."""
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(JSON_CHUNK)  # only PNGs have text chunks
    except (OSError, SyntaxError) as error:
        raise UserError(f"picture {path} cannot be read: {error}") from error
    if text is None:
        raise UserError(f"picture {path} holds no settings ({JSON_CHUNK} chunk): not made here?")
    return dict(json.loads(text))


def parameters_text(settings: Mapping[str, Any]) -> str:
    """Return the "parameters" chunk: prompt, negative prompt, and one line of settings.

    LoRA files stand in the prompt, and a clip skip of n counts n + 1, both as there.

    Format as read by parse_generation_parameters of
    https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/infotext_utils.py
    """
    sampler = settings.get("sampler")
    size = f"{settings['width']}x{settings['height']}" if "width" in settings else None
    fields = {
        "Steps": settings.get("steps"),
        "Sampler": SAMPLERS[sampler].label if sampler in SAMPLERS else sampler,
        "CFG scale": settings.get("scale"),
        "CFG Rescale": settings.get("rescale") or None,
        "Seed": settings.get("seed"),
        "Size": size,
        "Denoising strength": settings.get("strength", settings.get("hires_strength")),
        "Hires upscale": settings.get("hires"),
        "Hires upscaler": "Latent (bicubic)" if settings.get("hires") else None,
        "Clip skip": skipped + 1 if (skipped := settings.get("clip_skip") or 0) else None,
        "Model hash": str(settings.get("fingerprint") or "")[:10] or None,
        "Model": settings.get("model"),
    }
    loras = [file_and_weight.rpartition(":") for file_and_weight in settings.get("lora") or ()]
    named = [f" <lora:{Path(file).stem}:{weight}>" for file, _, weight in loras]  # as A1111 asks
    lines = [str(settings.get("prompt", "")) + "".join(named)]
    if settings.get("negative"):
        lines.append(f"Negative prompt: {settings['negative']}")
    known = {key: value for key, value in fields.items() if value is not None}
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in known.items()))
    return "\n".join(lines)


@functools.cache  # a look into each library's files, for every picture
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a picture depends on: read only."""
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in _LIBRARIES}


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text
