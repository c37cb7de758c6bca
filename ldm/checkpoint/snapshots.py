"""Snapshots: only what was trained, in safetensors, with a manifest of hashes and the config.

RUN/snapshots/step-000400/unet.safetensors          keys of the module's state dict
                          text_encoder.safetensors  when it was trained
                          manifest.json             step, config, size and sha256 of each file

The manifest is {"step", "config", "files": {name: {"bytes", "sha256"}}}.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ldm.checkpoint.files import (
    explain_disk_errors,
    flush,
    put_in_place,
    read_json,
    sha256_of,
    staging_path,
    write_json,
)
from ldm.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def save_snapshot(
    folder: Path, modules: Mapping[str, nn.Module], config: Mapping[str, Any], step: int
) -> Path:
    """Write `folder`/step-000400 (400 = `step`) and return it; one that is there is replaced.

    Staged beside its place, flushed, then renamed: a snapshot that has its name is complete.
    `config` must be JSON-serialisable. Raises UserError when the disk cannot be written.
    """
    from safetensors.torch import save_file

    target = Path(folder) / f"step-{step:06d}"
    staged = staging_path(target)
    with explain_disk_errors(target):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        files = {}
        for name, module in modules.items():
            path = staged / f"{name}.safetensors"
            state = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
            save_file(state, path, metadata={"format": "pt"})
            flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        write_json(staged / MANIFEST, {"step": step, "config": dict(config), "files": files})
        if target.exists():  # trained again from an earlier resume state
            shutil.rmtree(target)
        put_in_place(staged, target)
    return target


def read_manifest(path: Path) -> dict[str, Any]:
    """A snapshot's verified manifest; UserError naming the file that is missing or damaged."""
    path = Path(path)
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is not a snapshot: {MANIFEST} is missing or damaged")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"snapshot {path} lacks {name}; choose another snapshot")
        if file.stat().st_size != expected["bytes"] or sha256_of(file) != expected["sha256"]:
            raise UserError(
                f"{file} is damaged (not the sha256 in {MANIFEST}); choose another snapshot"
            )
    return manifest


def load_snapshot(path: Path, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Load a verified snapshot into `modules` (strictly, in place) and return its manifest.

    `modules` may hold more than was trained ({"unet", "text_encoder"}): the rest stays as it is.
    Raises UserError for a damaged snapshot, a part that `modules` lacks, other keys or shapes.
    """
    from safetensors.torch import load_file

    path = Path(path)
    manifest = read_manifest(path)
    for file in manifest["files"]:
        name = Path(file).stem
        if name not in modules:
            raise UserError(f"snapshot {path} holds {name}; the model has {', '.join(modules)}")
        try:
            modules[name].load_state_dict(load_file(path / file), strict=True)
        except RuntimeError as error:
            raise UserError(f"{path / file} does not fit this base model: {error}") from error
    return manifest


def list_snapshots(folder: Path) -> dict[int, Path]:
    """Complete snapshots in a folder, {step: path} in rising order; empty when there are none."""
    found = {}
    for path in Path(folder).glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match and (path / MANIFEST).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def find_snapshot(run: Path, which: str | int = "best") -> Path:
    """A run's snapshot: "best" (chosen by its evaluation, else the last), "last", or a step.

    Raises UserError naming what there is when it does not exist.
    """
    run = Path(run)
    snapshots = list_snapshots(run / "snapshots")
    if not snapshots:
        raise UserError(f"{run / 'snapshots'} holds no snapshot; train first")
    step = _step_of(run, which, last=max(snapshots))
    if step not in snapshots:
        raise UserError(
            f"no snapshot {which!r} in {run / 'snapshots'}; "
            f"there are {', '.join(map(str, snapshots))}, and 'last' and 'best'"
        )
    return snapshots[step]


def _step_of(run: Path, which: str | int, last: int) -> int | None:
    """The step that "best", "last", 400 or "400" stand for; None when it is none of these."""
    if which == "last":
        return last
    if which != "best":
        return int(which) if str(which).isdecimal() else None
    evaluation = read_json(run / "evaluation.json")
    chosen = evaluation.get("chosen") if isinstance(evaluation, dict) else None
    if chosen is None:
        log.info("no snapshot of %s is chosen yet: taking the last, step %d", run, last)
        return last
    return int(chosen)
