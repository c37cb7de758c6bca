"""Tables of a report: metrics beside the base's, and gates, as rows of cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldm.evaluation.report.data import BASE, RunFiles, number
from ldm.evaluation.terms import GROUPS, UP, Term, figure, first_of, in_order, interval, term

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One score: texts to show, and the value as it stands in the JSON file."""

    column: str
    text: str
    interval: str = ""
    n: str = ""
    value: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Row:
    """One metric. limit: its ceiling or floor, if there is one, and which of them it is."""

    metric: str
    term: Term
    cells: list[Cell]
    limit: Cell | None = None
    limit_name: str = ""

    @property
    def arrow(self) -> str:
        """An arrow to where it is better."""
        return {"": "", UP: "↑"}.get(self.term.better, "↓")

    @property
    def n(self) -> str:
        """The number of observations, where it is the same all along the row."""
        counts = {cell.n for cell in self.cells if cell.n}
        return counts.pop() if len(counts) == 1 else ""


def cell(column: str, score: Any, share: bool, chosen: bool = False) -> Cell:
    """A score as a cell; what is missing or not finite is shown as a dash."""
    score = score if isinstance(score, dict) else {}
    value, low, high = (number(score.get(key)) for key in ("value", "low", "high"))
    n = number(score.get("n"))
    if value is None:
        return Cell(column, NOTHING, chosen=chosen)
    shown = "" if low is None or high is None else interval(low, high, share)
    count = "" if n is None else f"{n:.0f}"
    return Cell(column, figure(value, share), shown, count, value, chosen)


def metric_groups(run: RunFiles) -> list[tuple[str, str, list[Row]]]:
    """Title, explanation and rows of each group of metrics; columns are the base and snapshots."""
    columns = [BASE, *run.evaluation.get("snapshots", {})]
    columns.sort(key=lambda key: (key != BASE, [BASE, *run.steps].index(key)))
    metrics = {metric for key in columns for metric in run.scores(key)}
    groups: dict[str, list[Row]] = {}
    for metric in in_order(metrics):
        row = _row(run, metric, columns)
        groups.setdefault(row.term.group, []).append(row)
    return [(*GROUPS[group], rows) for group, rows in groups.items()]


def headlines(run: RunFiles, key: str) -> list[Row]:
    """What to look at first, of the base and of one snapshot."""
    first = in_order(set(first_of(run.scores(key))))
    return [_row(run, metric, [BASE, key]) for metric in first]


def _row(run: RunFiles, metric: str, columns: Sequence[str]) -> Row:
    """A metric of the base and of snapshots, and its ceiling or floor."""
    told = term(metric)
    cells = [
        cell(key, run.scores(key).get(metric), told.share, key == run.chosen) for key in columns
    ]
    limits = {name: run.evaluation.get(name) or {} for name in ("ceiling", "floor")}
    name = next((name for name, scores in limits.items() if metric in scores), "")
    limit = cell(name, limits[name][metric], told.share) if name else None
    return Row(metric, told, cells, limit, name)


@dataclass(frozen=True)
class GateCell:
    """Whether one snapshot passes one gate (None: it was not asked)."""

    passed: bool | None
    text: str
    advice: str = ""


def gate_rows(run: RunFiles) -> tuple[list[str], list[tuple[str, list[GateCell]]]]:
    """Steps, and for each gate by name what they did at it."""
    by_step = run.evaluation.get("gates") or {}
    steps = [step for step in run.steps if step in by_step]
    names = list(dict.fromkeys(gate["name"] for step in steps for gate in by_step[step]))
    rows = []
    for name in names:
        found = [next((g for g in by_step[s] if g["name"] == name), None) for s in steps]
        rows.append((_gate_name(name), [_gate_cell(name, gate) for gate in found]))
    return steps, rows


def _gate_name(name: str) -> str:
    """In words: the name is a metric, perhaps with a note in brackets."""
    metric, *note = name.split(" (", 1)
    told = term(metric)
    if told.group == "other":
        return name
    return f"{GROUPS[told.group][0]}: {told.name}" + (f", {note[0].rstrip(')')}" if note else "")


def _gate_cell(name: str, gate: dict[str, Any] | None) -> GateCell:
    if gate is None:
        return GateCell(None, NOTHING)
    share = term(name.split(" (")[0]).share
    value, limit = number(gate.get("value")), number(gate.get("limit"))
    shown = NOTHING if value is None else figure(value, share)
    text = shown if limit is None else f"{shown}, limit {figure(limit, share)}"
    advice = "" if gate.get("passed") else str(gate.get("advice") or "")
    return GateCell(bool(gate.get("passed")), text, advice)
