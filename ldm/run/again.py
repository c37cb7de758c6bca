"""Measuring what is there already: finished runs, and models that were exported or come from a hub.

A model is measured like a run of one snapshot, in a folder of the same layout, so that reports and
comparisons need not know the difference.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import list_snapshots
from ldm.checkpoint.files import read_json
from ldm.config import Config, Evaluation, load_config
from ldm.errors import UserError
from ldm.export import ABOUT
from ldm.models.base import load_base
from ldm.run.evaluate import FOLDER, Evaluator, task_of
from ldm.run.folder import claimed, read_config, read_facts
from ldm.run.instruments import load_instruments
from ldm.run.measuring import Measuring, write_report_or_warn
from ldm.run.prepare import prepare
from ldm.run.results import step_name, write_result
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
                "diffusers folder, a folder of them, or a hub id"
            )
        found += sorted(str(path.parent) for path in inside)
    return found


def measure_model(
    source: str, out: Path, told: Told, files: Sequence[Path], overrides: Sequence[str],
    device: torch.device,
) -> Path:  # fmt: skip
    """Measure a model beside its untouched base, in a folder of its own below `out`; return that.

    files, overrides: configuration (prompts, sampling, evaluation); without files that of the run
    that the model was exported from, if it is still there, else the defaults. UserError: what is
    not told and not known, or no such model, base or pictures.
    """
    about = read_json(Path(source).expanduser() / ABOUT) or {}
    config = _config_of(source, about, told, files, overrides)
    ready = prepare(config, to_train=False)
    assert config.evaluation is not None
    instruments = load_instruments(config.evaluation, device)
    ready = replace(ready, instruments=instruments)
    run, step = out / name_of(source), int(about.get("step") or 0)
    evaluator = Evaluator(
        task_of(config, ready),
        instruments,
        run / FOLDER,
        Path(config.evaluation.root),
        lambda: ready.base.to(device),
        lambda: None,
    )
    evaluator.base()
    model = load_base(source).to(device)
    evaluator.measure(step_name(step), model, model.fingerprint, run.name)
    write_result(run, evaluator, instruments, config.evaluation, {step})
    write_report_or_warn(run)
    return run


def name_of(source: str) -> str:
    """What a model's folder is called: its own name, for RUN/export that of the run."""
    folder = Path(source).expanduser().resolve()
    if folder.is_dir():
        return folder.parent.name if folder.name == "export" else folder.name
    return source.replace("/", "--")


def _config_of(
    source: str, about: dict[str, Any], told: Told, files: Sequence[Path], overrides: Sequence[str]
) -> Config:
    """The configuration that a model is measured by, with what is told of it filled in."""
    pictures = told.pictures or _pictures_of(about)
    known = {
        "model.base": (told.base or about.get("base"), "--base FOLDER_OR_ID, the untouched model"),
        "subject.identifier": (told.identifier or about.get("identifier"), "--identifier WORD"),
        "subject.class_noun": (told.class_noun or about.get("class_noun"), "--class-noun NOUN"),
        "subject.pictures": (pictures, "--pictures FOLDER, of the subject"),
    }
    missing = [remedy for value, remedy in known.values() if not value]
    if missing:
        raise UserError(
            f"--model {source}: {ABOUT} does not say all of it; give {', '.join(missing)}"
        )
    own = Path(str(about.get("run", ""))) / "config.yaml"
    files = [*files] or ([own] if own.is_file() else [])
    words = [f"{key}={value}" for key, (value, _) in known.items()]
    config = load_config([*files], [*words, *overrides])
    return replace(config, evaluation=config.evaluation or Evaluation())


def _pictures_of(about: dict[str, Any]) -> Path | None:
    """The folder of the pictures that a model was trained on, if it is still there."""
    paths = [Path(path) for path in about.get("pictures", [])]
    return paths[0].parent if paths and paths[0].is_file() else None
