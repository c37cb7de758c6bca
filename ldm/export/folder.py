"""A diffusers folder: what `StableDiffusionPipeline.from_pretrained` and `load_base` open."""

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.files import (
    REPLACED,
    discard,
    explain_disk_errors,
    flush,
    hidden_path,
    put_in_place,
    staging,
    write_json,
    write_verified,
)
from ldm.checkpoint.tensors import write_tensors
from ldm.export.lora import Files, write_files
from ldm.models.base import BaseModel
from ldm.models.folder import WEIGHT_STEMS

ABOUT = "dreambooth.json"  # beside model_index.json: what the model was taught
# transformers drops it since 5.6, and reads it still; what reads Stable Diffusion wants it.
TEXT_PREFIX = "text_model."


def export_folder(
    base: BaseModel,
    out: Path,
    dtype: torch.dtype,
    about: Mapping[str, Any],
    beside: Files | None = None,
) -> Path:
    """Write all parts of `base`, weights and scheduler as they are now; return `out`.

    As safetensors of `dtype` (torch.float32 loads back bit for bit, or torch.float16); `about`
    (plain values) goes into dreambooth.json, and `beside` beside the parts. Staged beside its
    place, read back, then renamed; a folder of this name is replaced. `base` is only read.
    UserError: disk not writable.
    """
    replaced = hidden_path(out, REPLACED)
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with staging(out) as staged:
            _write_configs(base, staged, dtype)
            for part, stem in WEIGHT_STEMS.items():
                write = partial(write_tensors, tensors=_tensors(base, part, dtype))
                write_verified(staged / part / f"{stem}.safetensors", write)
            write_json(staged / ABOUT, dict(about))
            write_files(staged, beside or {}, dtype)
            for path in staged.rglob("*"):
                flush(path)
            if out.exists():
                put_in_place(out, replaced)
        if replaced.exists():
            discard(replaced)
    return out


def _write_configs(base: BaseModel, folder: Path, dtype: torch.dtype) -> None:
    """Everything but weights; where the base's own files lay stands nowhere."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        vae=base.vae,
        unet=base.unet,
        scheduler=base.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_config(folder)  # model_index.json
    text = copy.deepcopy(base.text_encoder.config)
    text.dtype, text.architectures = dtype, [type(base.text_encoder).__name__]
    text.save_pretrained(folder / "text_encoder")
    base.tokenizer.save_pretrained(folder / "tokenizer")
    # Readers older than tokenizer.json want these two.
    base.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    base.scheduler.save_pretrained(folder / "scheduler")
    for name in ("vae", "unet"):
        config = json.loads(getattr(base, name).to_json_string())
        config.pop("_name_or_path", None)
        (folder / name).mkdir()
        write_json(folder / name / "config.json", config)


def _tensors(base: BaseModel, part: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a part's weight file, by the names that readers know."""
    prefix = TEXT_PREFIX if part == "text_encoder" else ""
    return {
        prefix + key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in getattr(base, part).state_dict().items()
    }
