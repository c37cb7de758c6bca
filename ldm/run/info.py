"""What a file or folder says of itself, without its weights being read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ldm.checkpoint.files import read_json, read_sealed
from ldm.checkpoint.resume import LIST, NEWEST, PREVIOUS, ResumeIO
from ldm.checkpoint.snapshots import EVALUATIONS, MANIFEST, chosen_steps, list_snapshots
from ldm.data.images import SUFFIXES
from ldm.errors import UserError
from ldm.export import ABOUT, read_about
from ldm.models.files.keys import Kind
from ldm.models.files.recognise import recognise
from ldm.models.files.single_file import ABOUT as KEY
from ldm.models.files.single_file import CONFIGS
from ldm.models.files.weights_file import open_weights
from ldm.models.folder import INDEX
from ldm.sampling.metadata import JSON_CHUNK, TEXT_CHUNK

KINDS: dict[Kind, str] = {
    "sd1": "Stable Diffusion 1.x, single file",
    "sd2": "Stable Diffusion 2.x, single file",
    "sdxl": "Stable Diffusion XL, single file",
}


def tell(path: Path) -> dict[str, Any]:
    """What there is, under "is", and all that it says of itself, as plain values.

    A picture, a run, a snapshot, a model's folder, a resume state, or a file of weights. Hashes are
    not verified: no weights are read. UserError: it is nothing of these, or damaged.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; give a file or folder that does")
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() in SUFFIXES:
        return _of_picture(path)
    if path.name.startswith(NEWEST.partition(".")[0]) and path.suffix == ".ckpt":
        return _of_resume_state(path)
    return _of_weights(path)


def _of_picture(path: Path) -> dict[str, Any]:
    try:
        with Image.open(path) as picture:
            about: dict[str, Any] = {"is": f"picture, {picture.format}", "size": [*picture.size]}
            text = getattr(picture, "text", {})
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(f"picture {path} cannot be read: {error}") from error
    if JSON_CHUNK in text:
        about[JSON_CHUNK] = json.loads(text[JSON_CHUNK])
    if TEXT_CHUNK in text:
        about[TEXT_CHUNK] = text[TEXT_CHUNK]
    if len(about) == 2:
        about["metadata"] = f"none: neither {JSON_CHUNK} nor {TEXT_CHUNK}"
    return about


def _of_folder(path: Path) -> dict[str, Any]:
    if (path / MANIFEST).is_file():
        return _of_snapshot(path)
    if (path / "config.yaml").is_file():
        return _of_run(path)
    if (path / INDEX).is_file():
        index = read_json(path / INDEX)
        if not isinstance(index, dict):
            raise UserError(f"{path / INDEX} is damaged; export the model, or fetch it, again")
        return {"is": f"model folder, {index.get('_class_name')}", INDEX: index} | _about(path)
    if about := _about(path):
        files = sorted(file.name for file in path.iterdir())
        return {"is": "exported adapter", "files": files, **about}
    raise UserError(
        f"{path}: neither a run, a snapshot ({MANIFEST}) nor a model's folder ({INDEX})"
    )


def _about(path: Path) -> dict[str, Any]:
    about = read_about(path)
    return {ABOUT: about} if about else {}


def _of_snapshot(path: Path) -> dict[str, Any]:
    manifest = read_sealed(path / MANIFEST)
    if not manifest:
        raise UserError(f"{path / MANIFEST} is damaged; choose another snapshot")
    files = manifest["files"]
    wrong = [name for name, file in files.items() if _size(path / name) != file["bytes"]]
    whole = f"no: {', '.join(wrong)} missing or of another size" if wrong else "by names and sizes"
    return {"is": "snapshot", "step": manifest["step"], "whole": whole} | {
        "files": files,
        "config": manifest["config"],
    }


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _of_run(path: Path) -> dict[str, Any]:
    facts = read_json(path / "run.json") or {}
    result = read_json(path / EVALUATIONS[0]) or {}
    states = [name for name in (NEWEST, PREVIOUS) if (path / name).is_file()]
    return {
        "is": "run",
        "snapshots": [*list_snapshots(path / "snapshots")],
        "chosen": sorted(chosen_steps(path)),
        "reasons": result.get("reasons", []),
        "resume states": states,
        "run.json": {key: value for key, value in facts.items() if key != "config"},
    }


def _of_resume_state(path: Path) -> dict[str, Any]:
    state = ResumeIO().load_checkpoint(path)
    if "global_step" not in state:
        raise UserError(f"{path} is no resume state: it has no step")
    listed = (read_sealed(path.with_name(LIST)) or {}).get("states", [])
    sizes = [entry["bytes"] for entry in listed if entry["step"] == state["global_step"]]
    return {
        "is": "resume state",
        "step": state["global_step"],
        "bytes": path.stat().st_size,
        f"size as in {LIST}": path.stat().st_size in sizes,
        "weights": len(state.get("state_dict", {})),
        "optimizers": len(state.get("optimizer_states", [])),
        "pytorch-lightning": state.get("pytorch-lightning_version"),
    }


def _of_weights(path: Path) -> dict[str, Any]:
    file = open_weights(path)
    try:
        what = KINDS[recognise(path, file.shapes)]
    except UserError as error:  # a LoRA, a VAE, a part of a model, another model
        what = str(error).removeprefix(f"model {path}: ").partition(";")[0]
    about: dict[str, Any] = {
        "is": what,
        "bytes": path.stat().st_size,
        "tensors": len(file.shapes),
        "numbers": sum(math.prod(shape) for shape in file.shapes.values()),
    }
    groups: dict[str, dict[str, Any]] = {"modelspec": {}, "ss": {}, "dreambooth": {}, "other": {}}
    for key, value in sorted(file.metadata.items()):
        group = "modelspec" if key.startswith("modelspec.") else "ss" if key[:3] == "ss_" else ""
        if key == KEY:
            groups["dreambooth"] = json.loads(value)
        elif key == CONFIGS:
            groups["other"][key] = f"configurations and tokenizers, {len(value)} characters"
        else:
            groups[group or "other"][key] = value
    return about | {name: group for name, group in groups.items() if group}


def as_text(about: Mapping[str, Any], indent: str = "") -> str:
    """Lines of "name  value", what is inside something indented below its name."""
    lines, width = [], max(map(len, about), default=0)
    for key, value in about.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", as_text(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{key}")
            lines += [as_text({str(n): item}, indent + "  ") for n, item in enumerate(value)]
        else:
            shown = _shown(value).splitlines() or [""]
            if len(shown) > 1:
                lines += [f"{indent}{line}" for line in (key, *(f"  {line}" for line in shown))]
            else:
                lines.append(f"{indent}{key:{width}} {shown[0]}".rstrip())
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, {}) else str(value)
