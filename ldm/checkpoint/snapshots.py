"""Snapshots: only what was trained, in safetensors, with a manifest of hashes and the config.

RUN/snapshots/step-000400/unet.safetensors          keys of the module's state dict
                          text_encoder.safetensors  when it was trained; of SDXL text_encoder_2 too
                          unet.ema.safetensors      the same keys, averaged weights, where asked for
                          manifest.json             step, config, size and sha256 of each file

The manifest is {"step", "config", "files": {name: {"bytes", "sha256"}}}, sealed.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ldm.checkpoint.files import (
    REPLACED,
    Content,
    discard,
    hidden_path,
    put_in_place,
    read_json,
    read_sealed,
    sha256_of,
    staging,
    write_sealed,
    write_verified,
)
from ldm.checkpoint.tensors import write_tensors
from ldm.errors import UserError, explain_disk_errors

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# What the evaluation of this end chose, and the one before training went on from an earlier end.
EVALUATIONS = ("evaluation.json", "evaluation.previous.json")
NAME = re.compile(rf"step-(\d+)|\.step-(\d+){re.escape(REPLACED)}")
WEIGHTS, EMA = ".safetensors", ".ema.safetensors"


def save_snapshot(
    folder: Path,
    modules: Mapping[str, nn.Module],
    config: Mapping[str, Any],
    step: int,
    ema: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write `folder`/step-000400 (400 = `step`) and return it; one that is there is replaced.

    Staged beside its place, read back, then renamed: a snapshot that has its name is complete.
    `config` must be JSON-serialisable. ema: of some modules the averaged tensors, by their key in
    the module's state dict; the others are written beside them, so that the file stands alone.
    Raises UserError when the disk cannot be written, ValueError for an EMA of what is not there.
    """
    target = Path(folder) / f"step-{step:06d}"
    replaced = hidden_path(target, REPLACED)
    files = {}
    with explain_disk_errors(target):
        with staging(target) as staged:
            staged.mkdir(parents=True)
            for name, state in _contents(modules, ema or {}).items():
                files[name] = write_verified(staged / name, partial(write_tensors, tensors=state))
            write_sealed(staged / MANIFEST, {"step": step, "config": dict(config), "files": files})
            if target.exists():  # trained again from an earlier resume state
                put_in_place(target, replaced)
        if replaced.exists():
            discard(replaced)
    return target


def _contents(
    modules: Mapping[str, nn.Module], ema: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of a snapshot; none is copied."""
    contents = {name + WEIGHTS: module.state_dict() for name, module in modules.items()}
    for name, averaged in ema.items():
        state = contents.get(name + WEIGHTS, {})
        if unknown := averaged.keys() - state.keys():
            raise ValueError(f"EMA of {name}: the module has no {', '.join(sorted(unknown))}")
        contents[name + EMA] = {**state, **averaged}
    return contents


def read_manifest(path: Path) -> dict[str, Any]:
    """A snapshot's verified manifest; UserError naming the file that is missing or damaged."""
    path = Path(path)
    manifest = read_sealed(path / MANIFEST) or {}
    if not manifest.get("files"):
        raise UserError(f"{path} is not a snapshot: {MANIFEST} is missing or damaged")
    if (step := manifest["step"]) != _step_of(path):
        raise UserError(f"{path} has another snapshot's {MANIFEST}, that of step {step}")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"snapshot {path} lacks {name}; choose another snapshot")
        try:
            content = Content(bytes=file.stat().st_size, sha256=sha256_of(file))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{file} cannot be read: {reason}; choose another snapshot") from error
        if content != expected:
            raise UserError(
                f"{file} is damaged (not the sha256 in {MANIFEST}); choose another snapshot"
            )
    return manifest


def load_snapshot(
    path: Path, modules: Mapping[str, nn.Module], ema: bool = False
) -> dict[str, Any]:
    """Load a verified snapshot into `modules` (strictly, in place) and return its manifest.

    `modules` may hold more than was trained (`BaseModel.networks`): the rest stays as it is.
    ema: load the averaged weights, of each part that has them. Raises UserError for a damaged
    snapshot, a part that `modules` lacks, other keys or shapes, no averaged weights.
    """
    from safetensors.torch import load_file

    path = Path(path)
    manifest = read_manifest(path)
    files = manifest["files"]
    if ema and not any(name.endswith(EMA) for name in files):
        raise UserError(f"snapshot {path} has no averaged weights (EMA); take the plain ones")
    for file in [name for name in files if not name.endswith(EMA)]:
        part = file.removesuffix(WEIGHTS)
        if part not in modules:
            raise UserError(f"snapshot {path} holds {part}; the model has {', '.join(modules)}")
        if ema and part + EMA in files:
            file = part + EMA
        try:
            modules[part].load_state_dict(load_file(path / file), strict=True)
        except RuntimeError as error:
            raise UserError(f"{path / file} does not fit this base model: {error}") from error
    return manifest


def list_snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots in a folder, {step: path} in rising order; empty when there are none.

    Where one was just being replaced when its process died, it is the one before.
    """
    found: dict[int, Path] = {}
    for path in sorted(Path(folder).glob("*")):  # a finished one after the one that it replaces
        step = _step_of(path)
        if step is not None and path.is_dir():
            found[step] = path
    return dict(sorted(found.items()))


def _step_of(path: Path) -> int | None:
    """The step that a snapshot's name says; None for any other name."""
    match = NAME.fullmatch(path.name)
    return int(match[1] or match[2]) if match else None


def has_snapshot(folder: Path, step: int) -> bool:
    """Whether the snapshot of a step is there and undamaged; all of it is read."""
    path = list_snapshots(folder).get(step)
    try:
        return path is not None and bool(read_manifest(path))
    except UserError:
        return False


def prune_snapshots(folder: Path, keep: int, step: int, needed: Iterable[int] = ()) -> None:
    """Remove all but the newest `keep` (>= 1) of the snapshots up to `step`, and but `needed`.

    Later ones are of a run that went back to an earlier state: they stay until they are replaced.
    UserError when the disk cannot be written.
    """
    past = {at: path for at, path in list_snapshots(folder).items() if at <= step}
    spared = {*sorted(past)[-keep:], *needed}
    for at, path in past.items():
        if at not in spared:
            with explain_disk_errors(path):
                discard(path)


def chosen_steps(run: Path) -> set[int]:
    """The snapshots that a run's evaluations chose: of its last end, and of the one before."""
    chosen = (_chosen_in(Path(run) / name) for name in EVALUATIONS)
    return {step for step in chosen if step is not None}


def _chosen_in(evaluation: Path) -> int | None:
    match read_json(evaluation):
        case {"chosen": int(step)}:
            return step
    return None


def find_snapshot(run: Path, which: str | int = "best") -> Path:
    """A run's snapshot: "best" (chosen by its evaluation, else the last), "last", or a step.

    Each is verified. Of "best" and "last" a damaged one is passed over with a warning, and the
    newest good one is taken. UserError naming what there is when it does not exist, the damaged
    file of a step, or each snapshot's where none is good.
    """
    run = Path(run)
    snapshots = list_snapshots(run / "snapshots")
    if not snapshots:
        raise UserError(f"{run / 'snapshots'} holds no snapshot; {_mend(run)}")
    if which not in ("best", "last"):
        step = int(which) if str(which).isdecimal() else None
        if step not in snapshots:
            raise UserError(
                f"no snapshot {which!r} in {run / 'snapshots'}; "
                f"there are {', '.join(map(str, snapshots))}, and 'last' and 'best'"
            )
        order = [step]
    else:
        first = _chosen_of(run, snapshots) if which == "best" else max(snapshots)
        order = [first, *sorted(snapshots.keys() - {first}, reverse=True)]
    return _first_good(run, {step: snapshots[step] for step in order})


def _mend(run: Path) -> str:
    return f"to write that of the last step: python main.py --resume {run}"


def _chosen_of(run: Path, snapshots: Mapping[int, Path]) -> int:
    """The chosen step, where it is there; else the last."""
    chosen, last = _chosen_in(run / EVALUATIONS[0]), max(snapshots)
    if chosen is None and "chosen" in (read_json(run / EVALUATIONS[0]) or {}):
        log.warning("no snapshot of %s passed its evaluation: taking the last, step %d", run, last)
    elif chosen is None:
        log.info("no snapshot of %s is chosen yet: taking the last, step %d", run, last)
    elif chosen not in snapshots:
        log.warning("%s: its chosen snapshot, step %d, is gone: taking the last", run, chosen)
    else:
        return chosen
    return last


def _first_good(run: Path, snapshots: Mapping[int, Path]) -> Path:
    """The first that is not damaged, in the order given."""
    following, reasons = [*snapshots][1:], []
    for path in snapshots.values():
        try:
            read_manifest(path)
        except UserError as error:
            reasons.append(f"\n  - {error}")
            if following:
                log.warning("%s: trying step %d; %s", error, following.pop(0), _mend(run))
            continue
        return path
    steps = ", ".join(map(str, snapshots))
    raise UserError(
        f"no good snapshot of step {steps} in {run / 'snapshots'}; {_mend(run)}{''.join(reasons)}"
    )
