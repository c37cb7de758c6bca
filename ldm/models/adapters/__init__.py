"""Adapters: few trained weights in some layers of frozen networks (LoRA and its relatives)."""

from ldm.models.adapters.extract import extract_lora
from ldm.models.adapters.network import Adapter, add_adapters, exactly_mergeable, merged, taken_out
from ldm.models.adapters.settings import AdapterSettings

__all__ = [
    "Adapter",
    "AdapterSettings",
    "add_adapters",
    "exactly_mergeable",
    "extract_lora",
    "merged",
    "taken_out",
]
