"""A run's snapshot, or any model, as other tools open it."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.files import read_json
from ldm.errors import UserError
from ldm.export import (
    ABOUT,
    adapter_files,
    diffusers_files,
    embedding_file,
    export_folder,
    export_single_file,
    kohya_file,
    read_about,
    write_files,
)
from ldm.export.single_file import SUFFIX
from ldm.models.adapters import Adapter, extract_lora
from ldm.models.base import BaseModel
from ldm.models.choices import Choices
from ldm.models.files.single_file import ABOUT as KEY
from ldm.models.files.weights_file import open_weights
from ldm.run.export.card import card_files
from ldm.run.export.describe import base_name, describe, licence_of, warn_of_whole_rank
from ldm.run.folder import read_config
from ldm.run.measure.results import EXPORT, RESULT
from ldm.run.settings import as_trained, weights_of
from ldm.run.subjects import identifiers_of
from ldm.run.trained import load_model, load_trained, load_untouched

log = logging.getLogger(__name__)

FILES = ("single-file", "kohya")  # formats that are one file


@dataclass(frozen=True)
class Exported:
    """A model to be written, and what it says of itself."""

    base: BaseModel
    about: dict[str, Any]
    run: Path | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)  # in `base`, not merged


def of_run(run: Path, snapshot: str, ema: bool, rank: int | None = None) -> Exported:
    """A snapshot ("best", "last" or a step) of a run, or its moving average.

    rank: the untouched base with a LoRA that comes near what all weights were trained to.
    """
    trained = load_trained(run, snapshot, ema=ema)
    model, step = as_trained(trained.config, trained.base), trained.manifest["step"]
    weights = weights_of(trained.manifest, model.fingerprint, ema)
    result = None if ema else read_json(run / RESULT)  # what was measured is the weights themselves
    about = describe(run, model, step, weights, result)
    warn_of_whole_rank(about)
    if rank is None:
        return Exported(model, about, run, trained.adapters)
    _merge(trained.adapters)
    untouched = load_untouched(trained.config)
    parts = {name.split(".")[0] for name in trained.manifest["files"]}
    networks = {name: net for name, net in untouched.networks.items() if name in parts}
    adapters, error = extract_lora(networks, trained.base.networks, rank)
    log.info("extracted at rank %d: %.1f %% of the change is left out", rank, 100 * error)
    about["extracted"] = {"rank": rank, "relative_error": round(error, 4)}
    return Exported(untouched, about, run, adapters)


def of_model(source: str, choices: Choices, loras: Sequence[tuple[Path, float]] = ()) -> Exported:
    """A folder, a hub id or a single file, with LoRA files added times their weights."""
    model, about = load_model(source, choices, loras), read_about(source)
    known: dict[str, Any] = {"base": base_name(source), "licence": licence_of(source)}
    if loras:
        known["loras"] = {path.name: weight for path, weight in loras}
    return Exported(model, {**known, **about})


def _as_folder(exported: Exported, out: Path, dtype: torch.dtype) -> None:
    base, about = exported.base, exported.about
    files = adapter_files(exported.adapters, base.kind, about)
    files = {**files, **card_files(exported.run, about)}
    _merge(exported.adapters)
    export_folder(base, out, dtype, about, files)


def _as_single_file(exported: Exported, out: Path, dtype: torch.dtype) -> None:
    _merge(exported.adapters)
    export_single_file(exported.base, out, dtype, exported.about)


def _merge(adapters: Mapping[str, Adapter]) -> None:
    """For good: what is exported is used for nothing else."""
    for adapter in adapters.values():
        adapter.merge()


def _as_lora(exported: Exported, out: Path, dtype: torch.dtype) -> None:
    files = diffusers_files(_adapters(exported))
    write_files(out, {**files, ABOUT: json.dumps(exported.about, indent=2)}, dtype)


def _as_kohya(exported: Exported, out: Path, dtype: torch.dtype) -> None:
    file = kohya_file(_adapters(exported), exported.base.kind, exported.about)
    write_files(out.parent, {out.name: file}, dtype)


def _adapters(exported: Exported) -> Mapping[str, Adapter]:
    """The run's own, or extracted ones. UserError: there are none."""
    if not exported.adapters:
        raise UserError(
            f"{exported.run} trained all weights and has no adapter; give --rank N (as 16) to "
            "extract a LoRA from what they changed"
        )
    if any(adapter.rows for adapter in exported.adapters.values()):
        log.warning(
            "%s trained its identifier's embedding too, which this file has no place for: "
            "write it with --format embedding, and say <word> in prompts",
            exported.run,
        )
    return exported.adapters


def _as_embedding(exported: Exported, out: Path, dtype: torch.dtype) -> None:
    """One file for each identifier, its rows of the token embeddings by the name <identifier>.

    UserError: the run did not train them.
    """
    assert exported.run is not None, "the command line asks for it"
    config, text = read_config(exported.run), exported.base.text
    before = [_embedding(encoder) for encoder in load_untouched(config).text.encoders]
    files: dict[str, Any] = {ABOUT: json.dumps(exported.about, indent=2)}
    _merge(exported.adapters)
    after = [_embedding(encoder) for encoder in text.encoders]
    for word in identifiers_of(config):
        tokens = [each(word, add_special_tokens=False).input_ids for each in text.tokenizers]
        same = zip(after, before, tokens, strict=True)
        if all(torch.equal(now[own], then[own]) for now, then, own in same):
            raise UserError(
                f"--format embedding: the run left the embedding of {word!r} as the base has "
                "it; train it with model.train_text_encoder or training.pivotal, or take "
                "another format"
            )
        files[f"{word}.safetensors"] = embedding_file(after, tokens, f"<{word}>")
    write_files(out, files, dtype)


def _embedding(encoder: Any) -> Tensor:
    weight: Tensor = encoder.get_input_embeddings().weight
    return weight


FORMATS: Mapping[str, Callable[[Exported, Path, torch.dtype], None]] = {
    "diffusers": _as_folder,
    "single-file": _as_single_file,
    "lora": _as_lora,
    "kohya": _as_kohya,
    "embedding": _as_embedding,
}


def place_of(form: str, out: Path | None, run: Path | None, source: str) -> Path:
    """Where an export goes; what is there already is replaced only if it is an earlier export.

    source: of the model, or of the run's base. UserError: another thing is there, or it is the
    base's, or the run's own.
    """
    name = run.resolve().name if run else Path(base_name(source)).name.removesuffix(SUFFIX)
    folder = (run or Path("logs") / "exports" / name) / f"export-{form}"
    default = folder / f"{name}{SUFFIX}" if form in FILES else folder
    place = (out or default).expanduser()
    if form in FILES and place.suffix != SUFFIX:
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
        return KEY in open_weights(place).metadata
    except UserError:
        return False
