"""Measuring what is there already: finished runs, and models that were exported or come from a hub.

A model is measured like a run of one snapshot, in a folder of the same layout, so that reports and
comparisons need not know the difference.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import list_snapshots
from ldm.checkpoint.files import read_json, sha256_of
from ldm.config import Config, Evaluation, load_config
from ldm.errors import UserError
from ldm.evaluation.pictures import ABOUT as PICTURES
from ldm.export import ABOUT, read_about
from ldm.models.base import load_base
from ldm.models.choices import OWN, Choices
from ldm.models.folder import find_folder
from ldm.run.folder import claimed, read_config, read_facts
from ldm.run.measure.evaluator import FOLDER, Evaluator, task_of
from ldm.run.measure.instruments import load_instruments
from ldm.run.measure.one_run import Measuring, write_report_or_warn
from ldm.run.measure.results import EXPORT, step_name, write_result
from ldm.run.prepare import prepare
from ldm.run.resume import check_unchanged

log = logging.getLogger(__name__)


def measure_run(run: Path, overrides: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Measure what is missing of every snapshot of a run; return what evaluation.json holds then.

    The choice, the export, metrics.csv and the report are made anew. overrides: key=value on top of
    the run's configuration. UserError: no run, other base or pictures than it was trained with, or
    another process trains in it.
    """
    read_config(run)  # says what is wrong with the folder
    config = load_config([run / "config.yaml"], [*overrides])
    section = replace(config.evaluation or Evaluation(), final=True)
    config = replace(config, evaluation=section)
    with claimed(run):
        ready = prepare(config, to_train=False)
        base = {"base": ready.base.source, "base_fingerprint": ready.base.fingerprint}
        check_unchanged(run, {**read_facts(run), **base, "pictures": ready.digests})
        last = max(list_snapshots(run / "snapshots"), default=0)
        result, _ = Measuring(config, ready, run).at_the_end(device, last)
        write_report_or_warn(run)
    return result


@dataclass(frozen=True)
class Told:
    """What the command line says of models; None: what each model's own dreambooth.json says."""

    identifier: str | None = None
    class_noun: str | None = None
    base: str | None = None
    pictures: Path | None = None
    choices: Choices = OWN  # of the models, not of their base


def find_models(sources: Sequence[str]) -> list[str]:
    """Each source, or where it is a folder of exported models all of these.

    UserError: a folder that is no model and holds none.
    """
    found: list[str] = []
    for source in sources:
        folder = Path(source).expanduser()
        if not folder.is_dir() or (folder / "model_index.json").is_file():
            found.append(source)
            continue
        inside = [*folder.glob("*/model_index.json"), *folder.glob("*/export/model_index.json")]
        if not inside:
            raise UserError(
                f"--model {source}: no model_index.json in it, nor in the folders below: give a "
                "diffusers folder, a folder of them, a single file, or a hub id"
            )
        found += sorted(str(path.parent) for path in inside)
    return found


@dataclass(frozen=True)
class Model:
    """A model that was looked at: it can be loaded, and what it is measured by is known."""

    source: str
    config: Config
    about: dict[str, Any]  # what it says of itself
    folder: Path  # where its pictures and numbers go
    choices: Choices


def check_models(
    sources: Sequence[str], out: Path, told: Told, files: Sequence[Path], overrides: Sequence[str]
) -> list[Model]:
    """Look at every model before the first is measured; each gets a folder of its own below `out`.

    files, overrides: configuration (prompts, sampling, evaluation); without files that of the run
    in whose folder the export lies, else the defaults. UserError: no such model, what is not told
    and not known, or a folder that holds a run or another model's numbers.
    """
    checked = []
    for source, name in names_of(sources).items():
        about = read_about(source)
        choices = told.choices.with_told(about)
        loaded = load_base(source, choices=choices)
        config = _config_of(source, about, told, files, overrides)
        if not Path(config.model.base).is_file():
            find_folder(config.model.base, config.model.revision, config.model.variant)
        _check_free(out / name, loaded.fingerprint, source)
        checked.append(Model(source, config, about, out / name, choices))
    return checked


def _check_free(folder: Path, fingerprint: str, source: str) -> None:
    """UserError where a folder is not that of the numbers of this model, nor empty."""
    for name in ("config.yaml", "run.json"):
        if (folder / name).exists():
            raise UserError(
                f"--model {source}: its numbers would go into {folder}, which is a run (it has "
                f"{name}); give another --out"
            )
    for path in sorted((folder / FOLDER).glob("step-*")):
        before = (read_json(path / PICTURES) or {}).get("fingerprint", fingerprint)
        if before != fingerprint:
            raise UserError(
                f"--model {source}: {folder} holds the numbers of another model (fingerprint "
                f"{before[:12]}, not {fingerprint[:12]}); remove it, or give another --out"
            )


def measure_model(model: Model, device: torch.device) -> Path:
    """Measure a model beside its untouched base, in its folder; return that.

    UserError: no such base or pictures, or a base that is not the one it was trained from.
    """
    config, run, step = model.config, model.folder, int(model.about.get("step") or 0)
    ready = prepare(replace(config, adapter=None), to_train=False)  # it is in the weights
    trained_from = model.about.get("base_fingerprint", ready.base.fingerprint)
    if trained_from != ready.base.fingerprint:
        raise UserError(
            f"--model {model.source}: {ready.base.source} is not the base that it was trained from "
            f"(fingerprint {ready.base.fingerprint[:12]}, was {trained_from[:12]}); give --base"
        )
    assert config.evaluation is not None
    instruments = load_instruments(config.evaluation, device)
    ready = replace(ready, instruments=instruments)
    evaluator = Evaluator(
        task_of(config, ready),
        instruments,
        run / FOLDER,
        Path(config.evaluation.root),
        lambda: ready.base.to(device),
        lambda: None,
    )
    evaluator.base()
    loaded = load_base(model.source, choices=model.choices).to(device)
    evaluator.measure(step_name(step), loaded, loaded.fingerprint, run.name)
    write_result(run, evaluator, instruments, config.evaluation, {step})
    write_report_or_warn(run)
    return run


def names_of(sources: Sequence[str]) -> dict[str, str]:
    """What the folders of models are called: as they themselves, for RUN/export as the run.

    Where these are the same, with so many of the folders above before them that they differ.
    UserError: one model given twice.
    """
    parts = {source: _parts_of(source) for source in sources}
    shown = dict.fromkeys(parts, 1)
    while True:
        names = {source: "-".join(own[-shown[source] :]) for source, own in parts.items()}
        alike = [s for s in parts if [*names.values()].count(names[s]) > 1]
        if not alike and len(parts) == len(sources):
            return names
        longer = [source for source in alike if shown[source] < len(parts[source])]
        if not longer:
            raise UserError(f"--model {' '.join(sources)}: gives one model twice")
        for source in longer:
            shown[source] += 1


def _parts_of(source: str) -> tuple[str, ...]:
    folder = Path(source).expanduser()
    if folder.is_file():
        return folder.resolve().with_suffix("").parts[1:]
    if not folder.is_dir():
        return (source.replace("/", "--"),)
    path = folder.resolve()
    return (path.parent if path.name == "export" else path).parts[1:]


def _config_of(
    source: str, about: dict[str, Any], told: Told, files: Sequence[Path], overrides: Sequence[str]
) -> Config:
    """The configuration that a model is measured by, with what is told of it filled in."""
    path = Path(source).expanduser().resolve()
    folder = path.parent if path.is_file() else path
    own = folder.parent / "config.yaml"
    exported = about and folder.name.startswith(EXPORT) and own.is_file()
    beside = load_config([own], []) if exported else None
    known = {
        "model.base": (
            told.base or (beside.model.base if beside else _base_of(about)),
            "--base FOLDER_OR_ID, the untouched model",
        ),
        "subject.identifier": (told.identifier or about.get("identifier"), "--identifier WORD"),
        "subject.class_noun": (told.class_noun or about.get("class_noun"), "--class-noun NOUN"),
        "subject.pictures": (
            told.pictures or _pictures_of(about, beside),
            "--pictures FOLDER, of the subject",
        ),
    }
    missing = [remedy for value, remedy in known.values() if not value]
    if missing:
        raise UserError(
            f"--model {source}: {ABOUT} (of a file its metadata) does not say all of it, or what "
            "it names is not here; "
            f"give {', '.join(missing)}"
        )
    files = [*files] or ([own] if beside else [])
    words = [f"{key}={value}" for key, (value, _) in known.items()]
    config = load_config([*files], [*words, *overrides])
    return replace(config, evaluation=config.evaluation or Evaluation())


def _base_of(about: Mapping[str, Any]) -> str | None:
    """The base that a model was trained from: a folder or file that is here, or a hub id."""
    base = str(about.get("base") or "")
    return base if (base and Path(base).exists()) or base.count("/") == 1 else None


def _pictures_of(about: Mapping[str, Any], beside: Config | None) -> Path | None:
    """The folder of the pictures that a model was trained on, if they are still there.

    beside: the configuration of the run whose export it is, which knows a folder elsewhere too.
    """
    digests = about.get("pictures")
    folder = beside.subject.pictures if beside else about.get("pictures_folder")
    if not folder or not isinstance(digests, dict):
        return None
    paths = {Path(folder) / name: digest for name, digest in digests.items()}
    same = all(path.is_file() and sha256_of(path) == digest for path, digest in paths.items())
    return Path(folder) if same else None
