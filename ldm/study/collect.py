"""The results of many runs as rows: what the chosen snapshot reaches, beside the base's numbers."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import read_json
from ldm.evaluation.metrics import Score, mean
from ldm.run.folder import read_facts
from ldm.study.runs import evaluation_of, runs_of

log = logging.getLogger(__name__)

RUNS = "runs"  # OUT/runs/METHOD/TIME_SUBJECT
METHOD = "method.json"  # beside the runs of a method: what it is
Scores = dict[str, Score]


@dataclass(frozen=True)
class Row:
    """One subject by one method, on the half of the prompts that nothing was chosen on.

    step: of the chosen snapshot; where none was chosen, of the last one, and `chosen` is False.
    ceiling: of the subject's own pictures among themselves. floor: of two draws of the base.
    """

    method: str
    subject: str
    class_noun: str
    run: Path
    step: int
    chosen: bool
    verdict: str
    seconds: float
    scores: Scores
    base: Scores
    ceiling: Scores = field(default_factory=dict)
    floor: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    method: str
    subject: str
    tail: tuple[str, ...]


def row_of(method: str, subject: str, run: Path, seconds: float = 0.0) -> Row | None:
    """The row of a run whose evaluation.json is whole; None of another one."""
    found = evaluation_of(run)
    if found is None:
        return None
    step, chosen = found["chosen"], found["chosen"] is not None
    if not chosen:
        step = max(int(one) for one in found["snapshots"])
    return Row(
        method,
        subject,
        read_facts(run).get("class_noun", ""),
        run,
        int(step),
        chosen,
        found.get("verdict") or "; ".join(found["reasons"]),
        seconds,
        found["snapshots"][str(step)],
        found["base"],
        found.get("ceiling", {}),
        found.get("floor", {}),
    )


def collect(out: Path) -> tuple[list[Row], list[Failure]]:
    """Every finished run below OUT/runs, by method and subject, and what failed last time."""
    rows, failures = [], []
    for method, subject, record in _records(out):
        runs = runs_of(record.parent, subject)
        attempts = (read_json(record) or {}).get("attempts", [])
        seconds = sum(attempt["seconds"] for attempt in attempts)
        found = [row for run in runs if (row := row_of(method, subject, run, seconds))]
        if found:
            rows.append(found[-1])
        elif attempts:
            failures.append(Failure(method, subject, tuple(attempts[-1]["tail"])))
    return rows, failures


def _records(out: Path) -> Iterator[tuple[str, str, Path]]:
    for record in sorted((out / RUNS).glob("*/*.json")):
        if record.name != METHOD:
            yield record.parent.name, record.stem, record


def methods_of(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> what was written of each method."""
    files = sorted((out / RUNS).glob(f"*/{METHOD}"))
    return {file.parent.name: read_json(file) or {} for file in files}


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Every metric that some row has of its snapshot, the usual ones first."""
    names = {name for row in rows for name in row.scores}
    return [*(name for name in HEADLINES if name in names), *sorted(names - set(HEADLINES))]


HEADLINES = (
    "subject/identity",
    "subject/fidelity/oracle",
    "subject/fidelity/dino",
    "subject/fidelity/clip",
    "subject/class",
    "subject/setting",
    "subject/accessory",
    "subject/prompt/clip",
    "subject/copied/oracle",
    "subject/copied/dino",
    "class/identity",
    "class/class",
    "class/change/colour",
    "class/change/setting",
    "class/change/accessory",
    "class/diversity/oracle",
    "class/pres/oracle",
    "class/pres/dino",
    "class/drift/oracle",
    "class/drift/dino",
    "unrelated/class",
    "unrelated/identity",
    "unrelated/drift/oracle",
    "unrelated/drift/dino",
)


def means(rows: Sequence[Row]) -> dict[str, dict[str, Score]]:
    """Metric -> {"value", "base", "difference"} over subjects, with intervals over subjects.

    A subject without a chosen snapshot counts with its last one. What compares with the base
    (drift, change, KID) has a value alone. "floor" and "ceiling" stand beside them where the runs
    have them. n: subjects that have the metric.
    """
    result = {}
    for metric in metrics_of(rows):
        having = [row for row in rows if metric in row.scores]
        parts = {"value": mean([row.scores[metric]["value"] for row in having])}
        both = [row for row in having if metric in row.base]
        if pairs := [(row.scores[metric]["value"], row.base[metric]["value"]) for row in both]:
            parts["base"] = mean([base for _, base in pairs])
            parts["difference"] = mean([value - base for value, base in pairs])
        for name in ("floor", "ceiling"):
            known = [getattr(row, name) for row in having]
            if values := [scores[metric]["value"] for scores in known if metric in scores]:
                parts[name] = mean(values)
        result[metric] = parts
    return result
