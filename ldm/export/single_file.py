"""A single `.safetensors` in the original naming (LDM), as A1111, ComfyUI and others open it.

Its metadata follow ModelSpec (https://github.com/Stability-AI/ModelSpec) and hold the networks'
configurations, so that a model of any size can be read back.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.files import staging, write_verified
from ldm.checkpoint.tensors import sha256_of_tensors, write_tensors
from ldm.errors import UserError, explain_disk_errors
from ldm.models.base import BaseModel
from ldm.models.files.keys import LAYOUTS, Kind, Place, kind_of, places_of, stored_as, to_stored
from ldm.models.files.single_file import ABOUT, CONFIGS, PREDICTION
from ldm.models.files.tokenizer import to_texts

SUFFIX = ".safetensors"
_ARCHITECTURES: dict[Kind, dict[str, str]] = {
    "sd1": dict.fromkeys(("epsilon", "v_prediction"), "stable-diffusion-v1"),
    "sd2": {"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
    "sdxl": dict.fromkeys(("epsilon", "v_prediction"), "stable-diffusion-xl-v1-base"),
}
_IMPLEMENTATIONS: dict[Kind, str] = {
    "sd1": "https://github.com/CompVis/stable-diffusion",
    "sd2": "https://github.com/Stability-AI/stablediffusion",
    "sdxl": "https://github.com/Stability-AI/generative-models",
}
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


class _Stored(Mapping[str, Tensor]):
    """Tensors made when they are asked for, so that no second model is in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self.makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def export_single_file(
    base: BaseModel, out: Path, dtype: torch.dtype, about: Mapping[str, Any]
) -> Path:
    """Write all of `base` as it is now into the file `out`; return it.

    `dtype` is that of every tensor (torch.float32 loads back bit for bit); `about` (plain values)
    goes into the metadata. A file of this name is replaced. UserError: disk not writable, weights
    too large for `dtype`.
    """
    found = {part: getattr(base, part, None) for part in _PARTS}
    parts = {part: module for part, module in found.items() if module is not None}
    resolution = base.default_resolution
    zero = base.zero_empty_prompt
    return write_single_file(parts, base.scheduler, resolution, out, dtype, about, zero)


def write_single_file(
    parts: Mapping[str, Any],
    scheduler: Any,
    resolution: int,
    out: Path,
    dtype: torch.dtype,
    about: Mapping[str, Any],
    zero_empty_prompt: bool = False,
) -> Path:
    """As `export_single_file`, of a model's parts by name; resolution in pixels along one side."""
    kind = kind_of(parts)
    tensors = _tensors(kind, parts, dtype)
    metadata = {
        **_model_spec(kind, scheduler, resolution, out.stem, about),
        "modelspec.hash_sha256": f"0x{sha256_of_tensors(tensors)}",
        CONFIGS: json.dumps(_configs(kind, parts, scheduler, zero_empty_prompt)),
        ABOUT: json.dumps(dict(about)),
    }
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with staging(out) as staged:
            write_verified(staged, partial(write_tensors, tensors=tensors, metadata=metadata))
    return out


def _tensors(kind: Kind, parts: Mapping[str, Any], dtype: torch.dtype) -> _Stored:
    makers = {}
    for part in LAYOUTS[kind]:
        state = nn.Module.state_dict(parts[part])
        places = places_of(kind, part, state)
        for name, keys in stored_as(places).items():
            makers[name] = partial(_tensor, name, places, state, keys, dtype)
    return _Stored(makers)


def _tensor(
    name: str,
    places: Mapping[str, Place],
    state: Mapping[str, Tensor],
    keys: list[str],
    dtype: torch.dtype,
) -> Tensor:
    stored = to_stored(places, state, keys)
    made = stored.to(dtype)
    if dtype is torch.float16 and not made.isfinite().all() and stored.isfinite().all():
        raise UserError(f"{name} holds numbers too large for fp16; export as bf16 or fp32")
    return made


def _model_spec(
    kind: Kind, scheduler: Any, resolution: int, title: str, about: Mapping[str, Any]
) -> dict[str, str]:
    prediction = str(scheduler.config.prediction_type)
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": _ARCHITECTURES[kind][prediction],
        "implementation": _IMPLEMENTATIONS[kind],
        "title": title,
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "resolution": f"{resolution}x{resolution}",
    }
    if identifier := about.get("identifier"):
        spec["trigger_phrase"] = f"{identifier} {about.get('class_noun', '')}".strip()
    if licence := about.get("licence"):
        spec["license"] = str(licence)
    return {PREDICTION: "v" if prediction == "v_prediction" else prediction} | {
        f"modelspec.{key}": value for key, value in spec.items()
    }


def _configs(
    kind: Kind, parts: Mapping[str, Any], scheduler: Any, zero_empty_prompt: bool
) -> dict[str, Any]:
    """What `read_single_file` builds the networks from."""
    configs = {}
    for part in LAYOUTS[kind]:
        config = parts[part].config
        plain = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
        configs[part] = {key: value for key, value in plain.items() if key[0] != "_"}
    return {
        "kind": kind,
        "parts": configs,
        "zero_empty_prompt": zero_empty_prompt,
        "scheduler": {**scheduler.config, "_class_name": type(scheduler).__name__},
        "tokenizer": {name: to_texts(parts[name]) for name in parts if "tokenizer" in name},
    }
