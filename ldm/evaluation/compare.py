"""Several runs side by side: methods in rows, metrics in columns, differences with intervals.

Where two runs were asked the same of the same base about the same subject, their pictures are
compared one by one: same prompt, same seed. Otherwise their numbers are taken as independent.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.evaluation.gates import REPORTING, difference
from ldm.evaluation.measured import Measured, read_measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.report.data import RunFiles, number, read_run
from ldm.evaluation.terms import (
    DOWN,
    HEADLINES,
    UP,
    figure,
    full_name,
    in_order,
    interval,
    term,
)

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("method", "step", "chosen", "metric", "value", "low", "high", "n")
DIFFERENCES = ("difference", "difference_low", "difference_high", "difference_n", "paired")


@dataclass(frozen=True)
class Difference:
    """A method's score minus the first one's, with its 95 % interval.

    paired: over pictures of the same prompt and seed; n is then the number of prompts (of class
    pictures: of pictures).
    """

    value: float
    low: float
    high: float
    n: int
    paired: bool

    def verdict(self, metric: str) -> str:
        """ "better" or "worse" where the interval lies wholly on one side of 0, else ""."""
        way = {UP: 1, DOWN: -1}.get(term(metric).better, 0)
        if way == 0 or self.low <= 0 <= self.high:
            return ""
        return "better" if self.value * way > 0 else "worse"


@dataclass(frozen=True)
class Method:
    """One run at one snapshot. measured: its numbers per picture, None where they are missing."""

    name: str
    run: RunFiles
    key: str  # of the snapshot, as in evaluation.json
    scores: dict[str, Any]
    measured: Measured | None = None
    differences: dict[str, Difference] = field(default_factory=dict)  # to the first method

    @property
    def chosen(self) -> bool:
        return self.key == self.run.chosen


@dataclass(frozen=True)
class Comparison:
    """Methods, the first of which the others are compared with; metrics in order."""

    methods: list[Method]
    metrics: list[str]
    notes: list[str]


def compare(runs: Sequence[Path]) -> Comparison:
    """Compare each run's chosen snapshot (the last measured one, where none is) with the first's.

    runs: run folders, or folders of the same layout. UserError: fewer than two, one that does not
    exist, one that is not evaluated.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs or more")
    methods = [_method(run, _name(run, runs)) for run in runs]
    notes = [
        f"{method.name}: no snapshot is chosen, the last one is shown"
        for method in methods
        if not method.chosen
    ]
    first = methods[0]
    for method in methods[1:]:
        why = _unpaired(method, first)
        if why:
            notes.append(f"{method.name} and {first.name}: differences are unpaired: {why}")
        else:
            notes += _unlike(method, first)
        for metric in method.scores.keys() & first.scores.keys():
            found = _difference(metric, method, first, paired=not why)
            if found is not None:
                method.differences[metric] = found
    metrics = in_order({metric for method in methods for metric in method.scores})
    return Comparison(methods, metrics, notes)


def _name(run: Path, runs: Sequence[Path]) -> str:
    """The folder's name; with its parent's where two have the same."""
    names = [other.resolve().name for other in runs]
    own = run.resolve()
    return own.name if names.count(own.name) == 1 else f"{own.parent.name}/{own.name}"


def _method(run: Path, name: str) -> Method:
    files = read_run(run)
    measured = [key for key in files.steps if files.scores(key)]
    if not measured:
        raise UserError(f"{run} is not evaluated; run: python scripts/evaluate.py --run {run}")
    key = files.chosen if files.chosen in measured else measured[-1]
    assert key is not None
    scores = {
        metric: score
        for metric, score in files.scores(key).items()
        if number(score.get("value")) is not None
    }
    try:
        rows = read_measured(files.folders[key])
    except (UserError, KeyError):
        rows = None
    return Method(name, files, key, scores, rows)


def _unpaired(method: Method, first: Method) -> str:
    """Why pictures of two methods cannot be compared one by one; "" where they can."""
    for words, mine, other in (
        ("other subjects", _subject(method), _subject(first)),
        ("other bases", _base(method), _base(first)),
    ):
        if mine != other:
            return words
    if method.measured is None or first.measured is None:
        return "numbers per picture (scores.json, pictures.csv) are missing"
    asked = [
        {(row["about"], row["prompt"], row["seed"]) for row in one.measured.rows}
        for one in (method, first)
        if one.measured is not None
    ]
    return "" if asked[0] & asked[1] else "no prompt and seed in common"


def _subject(method: Method) -> tuple[Any, ...]:
    """What is the same for two runs about one subject: words, and pictures compared with."""
    told = {**method.run.facts, **(method.run.evaluation.get("subject") or {})}
    compared = (method.run.evaluation.get("references") or {}).get("compared_with", "training")
    pictures = method.measured.about.get(compared) if method.measured else None
    return told.get("identifier"), told.get("class_noun"), pictures


def _base(method: Method) -> Any:
    known = method.run.evaluation.get("base_fingerprint")
    return known or method.run.facts.get("base_fingerprint")


def _unlike(method: Method, first: Method) -> list[str]:
    """What was not the same in drawing or measuring two methods."""
    assert method.measured is not None and first.measured is not None
    mine, other = method.run.evaluation, first.run.evaluation
    keys = [key for key in ("sampling", "precision") if mine.get(key) != other.get(key)]
    abouts = method.measured.about, first.measured.about
    tools = ("oracle", "rates", "extractors", "lpips")
    keys += [key for key in tools if abouts[0].get(key) != abouts[1].get(key)]
    if not keys:
        return []
    return [f"{method.name} and {first.name}: drawn or measured with other {', '.join(keys)}"]


def _difference(metric: str, method: Method, first: Method, paired: bool) -> Difference | None:
    """Picture by picture where that can be; else by the two scores."""
    if paired and method.measured is not None and first.measured is not None and "/" in metric:
        found = difference(metric, method.measured, first.measured, REPORTING)
        if found is not None:
            return Difference(**found, paired=True)
    return independent(method.scores[metric], first.scores[metric])


def independent(a: Score, b: Score) -> Difference | None:
    """a - b of two independent scores; None where an interval is missing.

    The interval is made of theirs: MOVER, Zou and Donner (Stat. Med. 27, 2008, eq. 3 and 4),
    low = a - b - sqrt((a - a_low)^2 + (b_high - b)^2), high likewise.
    """
    ends = [number(score.get(key)) for score in (a, b) for key in ("low", "high")]
    if any(end is None for end in ends):
        return None
    value = a["value"] - b["value"]
    low = value - math.hypot(a["value"] - a["low"], b["high"] - b["value"])
    high = value + math.hypot(a["high"] - a["value"], b["value"] - b["low"])
    return Difference(value, low, high, min(a["n"], b["n"]), paired=False)


def comparison_table(comparison: Comparison) -> "Table":
    """The headline metrics for a terminal; below each value its difference to the first method."""
    from rich.table import Table

    table = Table(title="side by side, 95 % intervals", title_justify="left")
    table.add_column("method", overflow="fold")
    table.add_column("step", justify="right")
    shown = headlines(comparison)
    for metric in shown:
        table.add_column(full_name(metric), justify="right", overflow="fold")
    for method in comparison.methods:
        texts = [_cell(method, metric) for metric in shown]
        table.add_row(_plain(method.name), method.key, *texts)
    return table


def headlines(comparison: Comparison, most: int = 7) -> list[str]:
    """The metrics to look at first, those that most methods have."""
    found = []
    for line in HEADLINES:
        counts = {metric: sum(metric in m.scores for m in comparison.methods) for metric in line}
        best = max(counts, key=lambda metric: counts[metric])
        if counts[best]:
            found.append(best)
    return list(dict.fromkeys(found))[:most]


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _cell(method: Method, metric: str) -> str:
    share, score = term(metric).share, method.scores.get(metric)
    if score is None:
        return "-"
    lines = [figure(score["value"], share)]
    if (low := number(score["low"])) is not None and (high := number(score["high"])) is not None:
        lines[0] += f" ({interval(low, high, share)})"
    if change := method.differences.get(metric):
        lines.append(difference_text(change, metric) + ("" if change.paired else " unpaired"))
        lines += [word] if (word := change.verdict(metric)) else []
    return "\n".join(lines)


def difference_text(change: Difference, metric: str) -> str:
    """A difference with its sign and interval; of shares in percentage points."""
    share = term(metric).share
    sign = "+" if change.value >= 0 else ""
    value = f"{100 * change.value:.1f} points" if share else figure(change.value, False)
    return f"{sign}{value} ({interval(change.low, change.high, share)})"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All scores and differences; what is not finite is null."""
    return {
        "methods": [
            {
                "name": method.name,
                "step": int(method.key) if method.key.isdecimal() else method.key,
                "chosen": method.chosen,
                "scores": {
                    m: _finite(method.scores[m]) for m in comparison.metrics if m in method.scores
                },
                "differences": {
                    m: vars(method.differences[m])
                    for m in comparison.metrics
                    if m in method.differences
                },
            }
            for method in comparison.methods
        ],
        "against": comparison.methods[0].name,
        "notes": comparison.notes,
    }


def _finite(score: dict[str, Any]) -> dict[str, Any]:
    return {key: value if number(value) is not None else None for key, value in score.items()}


def as_csv(comparison: Comparison) -> str:
    """A row per method and metric."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *DIFFERENCES])
    for method in comparison.methods:
        for metric in comparison.metrics:
            if (score := method.scores.get(metric)) is None:
                continue
            row = [method.name, method.key, int(method.chosen), metric]
            row += [number(score.get(key)) for key in ("value", "low", "high")]
            row.append(score.get("n"))
            change = method.differences.get(metric)
            row += list(vars(change).values()) if change else [None] * len(DIFFERENCES)
            writer.writerow(row)
    return text.getvalue()
