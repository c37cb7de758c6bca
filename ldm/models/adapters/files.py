"""LoRA files of others, added to a base's weights."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.models.adapters.kohya import add_dora
from ldm.models.base import BaseModel
from ldm.models.pipeline import pipeline_of

log = logging.getLogger(__name__)


@torch.no_grad()
def add_lora_files(base: BaseModel, files: Sequence[tuple[Path, float]]) -> None:
    """Add LoRA files, each times a weight, to the weights of UNet and text encoders, in place.

    In diffusers' or kohya's naming, as diffusers reads them; DoRA in kohya's by `add_dora`.
    UserError: a file that cannot be read, is for another architecture, or of which some tensors
    would not be used.
    """
    for path, weight in files:
        given = _tensor_names(path)
        dora = any(name.endswith(".dora_scale") for name in given)
        try:
            used = add_dora(base, path, weight) if dora else _add_by_diffusers(base, path, weight)
        except Exception as error:  # the library raises whatever its readers do
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{path} does not fit {base.source}: {reason[0]}") from error
        if used != len(given):
            raise UserError(
                f"{path}: of its {len(given)} tensors {used} have a place in {base.source}; it is "
                "of a kind or for a model that is not read here"
            )
        log.info("%s added, times %g", path, weight)


def _add_by_diffusers(base: BaseModel, path: Path, weight: float) -> int:
    """Return how many of the file's tensors had a place."""
    pipeline, name = pipeline_of(base), "lora"
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    used = _used(base, name)
    pipeline.set_adapters(name, weight)
    pipeline.fuse_lora(adapter_names=[name])
    pipeline.unload_lora_weights()
    return used


def _tensor_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return [name for name in file.keys() if not name.endswith(".alpha")]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from error


def _used(base: BaseModel, adapter: str) -> int:
    """How many tensors of an adapter lie in the networks."""
    parts = base.networks.values()
    names = [name for part in parts for name, _ in part.named_parameters()]
    return sum(f".{adapter}" in name for name in names)


def parse_lora(text: str) -> tuple[Path, float]:
    """ "FILE" or "FILE:WEIGHT" -> file and weight, 1 if none is given. UserError: no such file."""
    head, colon, tail = text.rpartition(":")
    try:
        path, weight = (Path(head), float(tail)) if colon else (Path(text), 1.0)
    except ValueError:  # a colon of the name's own
        path, weight = Path(text), 1.0
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a LoRA as FILE or FILE:WEIGHT")
    return path, weight
