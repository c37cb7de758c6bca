"""A diffusers folder: what diffusers' pipelines (`from_pretrained`) and `load_base` open."""

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.files import (
    REPLACED,
    discard,
    flush,
    hidden_path,
    put_in_place,
    staging,
    write_json,
    write_verified,
)
from ldm.checkpoint.tensors import write_tensors
from ldm.errors import explain_disk_errors
from ldm.export.lora import Files, write_files
from ldm.models.base import BaseModel
from ldm.models.folder import WEIGHT_STEMS
from ldm.models.pipeline import pipeline_of

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
    (plain values) goes into dreambooth.json, `beside` lies beside it. Staged, read back, then
    renamed; a folder of this name is replaced. `base` is only read.
    UserError: disk not writable.
    """
    replaced = hidden_path(out, REPLACED)
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with staging(out) as staged:
            _write_configs(base, staged, dtype)
            for part, network in {**base.networks, "vae": base.vae}.items():
                write = partial(write_tensors, tensors=_tensors(part, network, dtype))
                write_verified(staged / part / f"{WEIGHT_STEMS[part]}.safetensors", write)
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
    pipeline_of(base).save_config(folder)  # model_index.json
    names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    pairs = zip(base.text.tokenizers, base.text.encoders, strict=True)
    for (tokenizer_name, encoder_name), (tokenizer, encoder) in zip(names, pairs, strict=False):
        text = copy.deepcopy(encoder.config)
        text.dtype, text.architectures = dtype, [type(encoder).__name__]
        text.save_pretrained(folder / encoder_name)
        tokenizer.save_pretrained(folder / tokenizer_name)
        # Readers older than tokenizer.json want these two.
        tokenizer.backend_tokenizer.model.save(str(folder / tokenizer_name))
    base.scheduler.save_pretrained(folder / "scheduler")
    for name in ("vae", "unet"):
        config = json.loads(getattr(base, name).to_json_string())
        config.pop("_name_or_path", None)
        (folder / name).mkdir()
        write_json(folder / name / "config.json", config)


def _tensors(part: str, network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a part's weight file, by the names that readers know."""
    prefix = TEXT_PREFIX if part == "text_encoder" else ""
    return {
        prefix + key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict().items()
    }
