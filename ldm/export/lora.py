"""An adapter as files of its own, in the naming of diffusers and peft.

LoRA and its kin: `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` opens.
Without the adapter's metadata in its header it would be read with a scale of 1, whatever alpha is.
LoHa, LoKr and OFT, which that does not take: a folder for each network as peft saves it, for
`PeftModel.from_pretrained(pipeline.unet, "FOLDER/unet")`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ldm.checkpoint.files import flush, staging, write_verified
from ldm.checkpoint.tensors import write_tensors
from ldm.errors import explain_disk_errors
from ldm.models.adapters import Adapter

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name
LORA_METADATA = "lora_adapter_metadata"  # diffusers' key in a file's header
DORA = "lora_magnitude_vector"  # peft leaves its `.weight` out
LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora")


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file is to hold."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def write(self, file: IO[bytes], dtype: torch.dtype) -> None:
        """In `dtype`, but for scalars such as alpha, which keep theirs."""
        tensors = {
            key: tensor.to(dtype) if tensor.ndim else tensor for key, tensor in self.tensors.items()
        }
        write_tensors(file, tensors, self.metadata)


Files = Mapping[str, TensorFile | str | bytes]  # by their place in a folder


def write_files(out: Path, files: Files, dtype: torch.dtype) -> None:
    """Write files into the folder `out`, each staged, read back and renamed. UserError: disk."""
    with explain_disk_errors(out):
        for name, content in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with staging(path) as staged:
                if isinstance(content, TensorFile):
                    write_verified(staged, partial(content.write, dtype=dtype))
                else:
                    staged.write_bytes(content.encode() if isinstance(content, str) else content)
                    flush(staged)


def with_layers(adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """Without those that are nothing but rows of a token embedding."""
    return {name: adapter for name, adapter in adapters.items() if adapter.layers}


def is_lora(adapters: Mapping[str, Adapter]) -> bool:
    """Whether the adapters are of one of the kinds that are LoRA's."""
    return all(hasattr(adapter.config_of_adapter, "lora_alpha") for adapter in adapters.values())


def diffusers_files(adapters: Mapping[str, Adapter]) -> Files:
    """The files of the adapters of "unet", "text_encoder", ... in the naming of this module."""
    adapters = with_layers(adapters)
    if is_lora(adapters):
        return {WEIGHTS: _lora_file(adapters)}
    files: dict[str, TensorFile | str | bytes] = {}
    for name, adapter in adapters.items():
        state = {
            f"base_model.model.{key}": tensor for key, tensor in adapter.layers_state().items()
        }
        files[f"{name}/adapter_model.safetensors"] = TensorFile(state)
        files[f"{name}/adapter_config.json"] = json.dumps(_plain(adapter.config_of_adapter))
    return files


def _lora_file(adapters: Mapping[str, Adapter]) -> TensorFile:
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for name, adapter in adapters.items():
        # transformers has dropped the prefix since 5.6; readers take it, older ones want it.
        inner = "text_model." if name.startswith("text_encoder") else ""
        for key, tensor in adapter.layers_state().items():
            if inner and key.endswith(DORA):  # transformers' reader wants it in full
                key += ".weight"
            tensors[f"{name}.{inner}{key.removeprefix(inner)}"] = tensor
        config = _plain(adapter.config_of_adapter)
        about |= {f"{name}.{key}": config[key] for key in LORA_KEYS}
        about[f"{name}.target_modules"] = config["target_modules"]
    return TensorFile(tensors, {LORA_METADATA: json.dumps(about, sort_keys=True)})


def _plain(config: Any) -> dict[str, Any]:
    """An adapter's configuration as JSON can hold it."""
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
