"""What a report is made from: the files of a run folder, whatever of them is there."""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import read_json
from ldm.data.images import find_pictures
from ldm.errors import UserError
from ldm.evaluation.pictures import Asked, files_of, read_asked

log = logging.getLogger(__name__)

BASE = "base"  # key of the untouched base among the models of a run
LOSSES = ("loss/instance", "loss/prior")


@dataclass(frozen=True)
class Drawn:
    """The pictures of one model: what each was asked for, and those that are there."""

    paths: dict[tuple[str, str, int], Path]  # about, prompt, seed -> file
    halves: dict[str, str]  # subject prompt -> half

    def prompts(self, about: str) -> list[str]:
        """The prompts of one kind, in the order they were asked."""
        return list(dict.fromkeys(prompt for kind, prompt, _ in self.paths if kind == about))

    def seeds(self, about: str, prompt: str) -> list[int]:
        """The seeds of one prompt, in the order they were asked."""
        return [seed for kind, text, seed in self.paths if (kind, text) == (about, prompt)]


@dataclass
class RunFiles:
    """A run folder, read. Whatever is missing is empty, and `notes` says so."""

    name: str
    evaluation: dict[str, Any]  # of evaluation.json
    facts: dict[str, Any]  # of run.json
    config: str  # text of config.yaml
    losses: dict[str, list[tuple[int, float]]]  # name -> (step, value), finite ones
    drawn: dict[str, Drawn]  # BASE, and steps as in evaluation.json
    folders: dict[str, Path]  # of the same: where pictures and numbers are
    training: list[Path]
    heldout: list[Path]
    samples: dict[int, Path]  # step -> grid drawn while training
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[str]:
        """Keys of the snapshots that are measured or drawn, in the order of their steps."""
        keys = {*self.evaluation.get("snapshots", {}), *self.drawn} - {BASE}
        return sorted(keys, key=by_step)

    @property
    def chosen(self) -> str | None:
        """Key of the chosen snapshot."""
        chosen = self.evaluation.get("chosen")
        return None if chosen is None else str(chosen)

    def scores(self, key: str) -> dict[str, Any]:
        """Metric -> score of BASE or a snapshot, on the reporting half."""
        whose = self.evaluation if key == BASE else self.evaluation.get("snapshots", {})
        return whose.get(key) or {}


def by_step(key: str) -> tuple[int, str]:
    """Order of the snapshots' keys; what is no step comes last."""
    return (int(key), "") if key.isdecimal() else (1 << 62, key)


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a JSON or CSV file holds there."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def read_run(
    run: Path,
    base_pictures: Path | None = None,
    training: Sequence[Path] = (),
    heldout: Sequence[Path] = (),
) -> RunFiles:
    """Read what there is of a run; arguments as in `write_report`. UserError: no such folder."""
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist; give one from logs/")
    evaluation = _read_evaluation(run / "evaluation.json")
    config = _text(run / "config.yaml")
    notes: list[str] = []
    if not training and not heldout:
        training, heldout = _subject_pictures(run, evaluation, config, notes)
    folders = _folders(run, base_pictures or evaluation.get("base_pictures"))
    drawn = {key: _drawn(folder, notes) for key, folder in folders.items()}
    if not evaluation:
        notes.append("all metrics: this run is not evaluated yet (there is no evaluation.json)")
    return RunFiles(
        run.resolve().name,
        evaluation,
        _mapping(run / "run.json"),
        config,
        _losses(run / "metrics.csv"),
        {key: pictures for key, pictures in drawn.items() if pictures},
        folders,
        list(training),
        list(heldout),
        {int(p.stem[5:]): p for p in sorted((run / "samples").glob("step-*[0-9].png"))},
        notes,
    )


def _read_evaluation(path: Path) -> dict[str, Any]:
    if path.exists() and not isinstance(read_json(path), dict):
        raise UserError(f"{path} is damaged; remove it and evaluate the run again")
    return _mapping(path)


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _found(run: Path, path: str | Path) -> Path:
    """A path as a file names it: from the run folder, else from here."""
    return run / path if (run / path).exists() else Path(path)


def _folders(run: Path, base: str | Path | None) -> dict[str, Path]:
    """Where the pictures of the base and of each snapshot are; the base's are there, or noted."""
    folders = {BASE: _found(run, base or "evaluation/base")}
    for folder in sorted((run / "evaluation").glob("step-*[0-9]")):
        folders[str(int(folder.name.removeprefix("step-")))] = folder
    return folders if len(folders) > 1 or folders[BASE].exists() else {}


def _drawn(folder: Path, notes: list[str]) -> Drawn | None:
    """The pictures of a folder; None, with a note, where none can be had."""
    try:
        asked: list[Asked] = read_asked(folder)
    except UserError:
        notes.append(f"pictures of {folder.name}: they are not, or no longer, in {folder}")
        return None
    paths = {
        (one.about, one.prompt, one.seed): folder / file
        for one, file in zip(asked, files_of(asked), strict=True)
        if (folder / file).is_file()
    }
    if len(paths) < len(asked):
        lacking = len(asked) - len(paths)
        notes.append(f"pictures of {folder.name}: {lacking} of {len(asked)} are not drawn yet")
    halves = {one.prompt: one.half for one in asked if one.about == "subject"}
    return Drawn(paths, halves) if paths else None


def _subject_pictures(
    run: Path, evaluation: dict[str, Any], config: str, notes: list[str]
) -> tuple[list[Path], list[Path]]:
    """Training and held-out pictures that evaluation.json lists, else those config.yaml names."""
    subject = evaluation.get("subject") or {}
    listed = [[_found(run, p) for p in subject.get(key) or []] for key in ("training", "heldout")]
    if any(listed):
        return listed[0], listed[1]
    import yaml

    try:
        folder = _found(run, yaml.safe_load(config)["subject"]["pictures"])
        heldout = folder / "heldout"
        return find_pictures(folder), find_pictures(heldout) if heldout.is_dir() else []
    except (yaml.YAMLError, KeyError, TypeError):
        notes.append("the subject's pictures: config.yaml does not name them")
    except UserError as error:
        notes.append(f"the subject's pictures: {error}")
    return [], []


def _losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of metrics.csv; a row that is only half written is left out."""
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in LOSSES}
    for row in read_rows(path):
        step = number(row.get("step"))
        for name, curve in curves.items():
            value = number(row.get(name))
            if step is not None and value is not None:
                curve.append((int(step), value))
    return {name: curve for name, curve in curves.items() if curve}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a head; none where there is no file."""
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []
