"""A run's snapshot, or any model, as other tools open it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.files import read_json
from ldm.errors import UserError
from ldm.export import ABOUT, export_folder, export_single_file, read_about
from ldm.export.single_file import SUFFIX
from ldm.models.base import BaseModel, load_base
from ldm.models.choices import Choices
from ldm.models.single_file import CONFIGS
from ldm.models.weights_file import open_weights
from ldm.run.card import card_files
from ldm.run.describe import base_name, describe, licence_of
from ldm.run.results import EXPORT, RESULT
from ldm.run.settings import as_trained, weights_of
from ldm.run.trained import load_trained


@dataclass(frozen=True)
class Exported:
    """A model to be written, and what it says of itself."""

    base: BaseModel
    about: dict[str, Any]
    run: Path | None = None


def of_run(run: Path, snapshot: str, ema: bool) -> Exported:
    """A snapshot ("best", "last" or a step) of a run, or its moving average."""
    trained = load_trained(run, snapshot, ema=ema)
    model, step = as_trained(trained.config, trained.base), trained.manifest["step"]
    weights = weights_of(trained.manifest, model.fingerprint, ema)
    result = None if ema else read_json(run / RESULT)  # what was measured is the weights themselves
    return Exported(model, describe(run, model, step, weights, result), run)


def of_model(source: str, choices: Choices) -> Exported:
    """A folder, a hub id or a single file."""
    model, about = load_base(source, choices=choices), read_about(source)
    known = {"base": base_name(source), "licence": licence_of(source)}
    return Exported(model, {**known, **about})


def _as_folder(exported: Exported, out: Path, dtype: torch.dtype) -> Path:
    files = card_files(exported.run, exported.about)
    return export_folder(exported.base, out, dtype, exported.about, files)


def _as_single_file(exported: Exported, out: Path, dtype: torch.dtype) -> Path:
    return export_single_file(exported.base, out, dtype, exported.about)


FORMATS: Mapping[str, Callable[[Exported, Path, torch.dtype], Path]] = {
    "diffusers": _as_folder,
    "single-file": _as_single_file,
}


def place_of(form: str, out: Path | None, run: Path | None, source: str) -> Path:
    """Where an export goes; what is there already is replaced only if it is an earlier export.

    source: of the model, or of the run's base. UserError: another thing is there, or it is the
    base's, or the run's own.
    """
    name = run.resolve().name if run else Path(base_name(source)).name.removesuffix(SUFFIX)
    folder = (run or Path("logs") / "exports" / name) / f"export-{form}"
    default = folder / f"{name}{SUFFIX}" if form == "single-file" else folder
    place = (out or default).expanduser()
    if form == "single-file" and place.suffix != SUFFIX:
        raise UserError(f"--out {place}: a single file; its name must end in {SUFFIX}")
    path, base = place.resolve(), Path(source).expanduser().resolve()
    if base.exists() and (path == base or path in base.parents or base in path.parents):
        raise UserError(f"--out {place}: the model itself lies there; give another --out")
    if run and path in (run.resolve(), (run / EXPORT).resolve()):
        raise UserError(f"--out {place}: the run's own; give another --out")
    if place.exists() and not _is_export(place):
        raise UserError(f"--out {place} exists and is no export of a model; give another --out")
    return place


def _is_export(place: Path) -> bool:
    if place.is_dir():
        return (place / ABOUT).is_file() or not any(place.iterdir())
    try:
        return CONFIGS in open_weights(place).metadata
    except UserError:
        return False
