"""An adapter's files beside a model that it is merged into."""

from collections.abc import Mapping
from typing import Any

from ldm.export.kohya import can_be_kohya, kohya_file
from ldm.export.lora import Files, diffusers_files
from ldm.models.adapters import Adapter
from ldm.models.files.keys import Kind

FOLDER = "adapter"
KOHYA = "kohya.safetensors"


def adapter_files(adapters: Mapping[str, Adapter], kind: Kind, about: Mapping[str, Any]) -> Files:
    """In every naming that has this kind of adapter, in a folder of their own; none without one.

    about: of `dreambooth.json`.
    """
    if not adapters:
        return {}
    files = dict(diffusers_files(adapters))
    if can_be_kohya(adapters):
        files[KOHYA] = kohya_file(adapters, kind, about)
    return {f"{FOLDER}/{name}": content for name, content in files.items()}
