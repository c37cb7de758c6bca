"""Writing safetensors one tensor at a time.

The library's own writer first copies what is on a device, or not contiguous, into memory as a
whole. Format: https://huggingface.co/docs/safetensors/index#format
"""

import hashlib
import json
from collections.abc import Mapping
from typing import IO

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file of tensors on any device and in any memory layout.

    metadata: texts for the header, readable without the tensors. In memory there is a copy of one
    tensor at a time. KeyError for a type that is not in `NAMES`.
    """
    order = _order(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(_bytes(tensors[name]))


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal sha256 of what `write_tensors` writes after the header."""
    digest = hashlib.sha256()
    for name in _order(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """The format wants each tensor aligned to its type: the wide types come first."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
