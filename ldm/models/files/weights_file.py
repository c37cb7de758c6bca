"""The tensors of a .safetensors or .ckpt file, each read when it is asked for."""

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds. `read(name)` gives a tensor that may share memory with the file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


def open_weights(path: str | Path) -> WeightsFile:
    """Open a file of weights; which format it has is told by its content, not by its name.

    UserError: no such file, another kind of file, a damaged one, or a pickle that holds more than
    tensors and plain values.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"model {path} cannot be read: {error.strerror or error}") from error
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if zipfile.is_zipfile(path) or start[:1] == b"\x80":
        return _open_pickle(path)
    raise UserError(f"model {path}: {_what_it_is(start)}; fetch the file itself again")


def _what_it_is(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer of a few lines, not the weights (git lfs pull gets them)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page saved under this name (a login or error page), not weights"
    if start[:2] == b"PK":
        return "a .ckpt that breaks off before its end"
    return "neither safetensors nor a PyTorch checkpoint" if start else "an empty file"


def _open_safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(
            f"model {path} is damaged ({error}): a download that broke off? fetch it again"
        ) from error
    shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return _with_usual_names(path, shapes, opened.metadata() or {}, opened.get_tensor)


class _LightningCallback:
    """Stands for a class that checkpoints of Stable Diffusion 1 name and never need."""


def _open_pickle(path: Path) -> WeightsFile:
    # By its name torch would take a pickle for safetensors; mapped into memory it has to be named.
    mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(_plain_values()):
            content = torch.load(
                path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model {path}: a pickle that holds more than tensors and plain values, so opening it "
            "could run a program; it is not opened. Get the model as .safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"model {path} is damaged ({error}); fetch it again") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    tensors = {
        name: value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"model {path}: a PyTorch file without named tensors; it is no checkpoint")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return _with_usual_names(path, shapes, {}, tensors.__getitem__)


def _plain_values() -> list[Any]:
    """What old checkpoints hold beside tensors: the name of a callback, numbers of NumPy."""
    import numpy

    scalar = numpy.float64(0).__reduce__()[0]
    return [
        (_LightningCallback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        numpy.dtype,
        *(type(numpy.dtype(name)) for name in ("f8", "f4", "i8")),
    ]


def _with_usual_names(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    read: Callable[[str], Tensor],
) -> WeightsFile:
    """Some merged checkpoints leave out the `text_model.` of the text encoder of 1.x."""
    short, usual = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
    stored = {
        usual + name.removeprefix(short)
        if name.startswith((f"{short}embeddings.", f"{short}encoder.", f"{short}final_layer_norm."))
        else name: name
        for name in shapes
    }
    return WeightsFile(
        path,
        {name: shapes[own] for name, own in stored.items()},
        metadata,
        lambda name: read(stored[name]),
    )
