"""The tables of a benchmark: table.json, table.md, table.csv."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import flush, read_json, read_sealed, staging, write_json
from ldm.errors import explain_disk_errors
from ldm.evaluation.measured import SCORES
from ldm.evaluation.metrics import Score
from ldm.run.folder import read_facts
from ldm.study.collect import HEADLINES, Failure, Row, collect, means, methods_of, metrics_of

SHOWN = 12  # metrics in the table of single subjects


def write_tables(out: Path, title: str, notes: Sequence[str]) -> tuple[list[Row], list[Failure]]:
    """Write OUT/table.json, table.md and table.csv of all that lies below OUT/runs.

    notes: sentences on the protocol, for the reader. UserError: disk not writable.
    """
    rows, failures = collect(out)
    methods = {name: about for name, about in methods_of(out).items() if _of(rows, name)}
    notes = [*notes, *_warnings(methods, rows)]
    facts = {name: {**about, **_facts(_of(rows, name))} for name, about in methods.items()}
    with explain_disk_errors(out / "table.json"):
        content = {
            "title": title,
            "notes": notes,
            "methods": facts,
            "rows": [{**asdict(row), "run": row.run.relative_to(out).as_posix()} for row in rows],
            "failures": [asdict(failure) for failure in failures],
        }
        write_json(out / "table.json", content)
        write_text(out / "table.md", _markdown(title, notes, facts, rows, failures))
        write_text(out / "table.csv", _csv(rows))
    return rows, failures


def write_text(path: Path, text: str) -> None:
    """Write a text file so that no reader sees half of it."""
    with staging(path) as staged:
        staged.write_text(text, encoding="utf-8")
        flush(staged)


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    return [row for row in rows if row.method == method]


def _facts(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "subjects": len(rows),
        "with_a_chosen_snapshot": sum(row.chosen for row in rows),
        "run_seconds": round(sum(row.seconds for row in rows), 1),
        "versions": read_facts(rows[0].run).get("versions", {}) if rows else {},
        "means": means(rows),
    }


def _warnings(methods: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """What makes the methods' numbers hard to compare."""
    found = []
    if len({frozenset(row.subject for row in _of(rows, name)) for name in methods}) > 1:
        found.append("The methods were run on different subjects: their means do not compare.")
    measured = {name: about.get("evaluation", {}) for name, about in methods.items()}
    keys = sorted({key for about in measured.values() for key in about})
    unlike = [key for key in keys if len({repr(about.get(key)) for about in measured.values()}) > 1]
    if unlike:
        found.append(f"The methods were measured differently: {', '.join(unlike)}.")
    used = [_instruments_of(row.run) for row in rows]
    for place, words in enumerate(("oracles (other rates)", "feature extractors")):
        if len({repr(instruments[place]) for instruments in used}) > 1:
            found.append(f"The runs were measured with different {words}; measure them again.")
    return found


def _instruments_of(run: Path) -> tuple[Any, Any]:
    """The rates of the oracle, and the extractors, that a run was measured with."""
    rates = (read_json(run / "evaluation.json") or {}).get("oracle", {})
    about = (read_sealed(run / "evaluation" / "base" / SCORES) or {}).get("about", {})
    return sorted(rates.items()), sorted(about.get("extractors", {}).items())


def _markdown(
    title: str,
    notes: Sequence[str],
    methods: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    failures: Sequence[Failure],
) -> str:
    parts = [f"# {title}", *notes, _means_table(methods), "## Each subject", _subjects_table(rows)]
    if failures:
        lines = [f"- {f.method}, {f.subject}: {f.tail[-1] if f.tail else ''}" for f in failures]
        parts += ["## Failed", "\n".join(lines)]
    parts += ["## How it was made", *(_made(name, about) for name, about in methods.items())]
    return "\n\n".join(parts) + "\n"


def _means_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics in rows; the base and each method in columns, means over subjects."""
    header, lines = ["metric", "untouched base", "bounds"], []
    for name, about in methods.items():
        chosen = f"{about['with_a_chosen_snapshot']} of {about['subjects']} chosen"
        header += [f"{name} ({chosen})", "difference to base"]
    first: Mapping[str, Any] = next(iter(methods.values()), {"means": {}})["means"]
    for metric in dict.fromkeys(m for about in methods.values() for m in about["means"]):
        base = first.get(metric, {})
        cells = [metric, _cell(base.get("base")), _bounds(base)]
        for about in methods.values():
            parts = about["means"].get(metric, {})
            cells += [_cell(parts.get("value")), _cell(parts.get("difference"), signed=True)]
        lines.append(cells)
    return markdown_table(header, lines)


def _subjects_table(rows: Sequence[Row]) -> str:
    """Rows by method and subject; "value (base)" of the first metrics."""
    present = metrics_of(rows)
    shown = [metric for metric in HEADLINES if metric in present][:SHOWN] or present[:SHOWN]
    lines = []
    for row in rows:
        step = str(row.step) if row.chosen else f"none ({row.step})"
        cells = [row.method, row.subject, step]
        for metric in shown:
            score, base = row.scores.get(metric), row.base.get(metric)
            beside = f" ({base['value']:.2f})" if base else ""
            cells.append(f"{score['value']:.2f}{beside}" if score else "")
        lines.append(cells)
    return markdown_table(["method", "subject", "chosen step", *shown], lines)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; all but the first column stand right."""
    under = ["---", *["---:"] * (len(header) - 1)]
    texts = [[cell.replace("|", "\\|") for cell in line] for line in [header, under, *lines]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)


def _cell(score: Score | None, signed: bool = False) -> str:
    if score is None:
        return ""
    number = "{:+.3f}" if signed else "{:.3f}"
    value, low, high = (number.format(score[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _bounds(parts: Mapping[str, Score]) -> str:
    found = {"two draws of the base": "floor", "the subject's own pictures": "ceiling"}
    return "; ".join(
        f"{words} {parts[name]['value']:.3f}" for words, name in found.items() if name in parts
    )


def _made(name: str, about: Mapping[str, Any]) -> str:
    machine = about.get("machine", {})
    versions = ", ".join(f"{key} {value}" for key, value in about.get("versions", {}).items())
    return (
        f"**{name}**: `{shlex.join(about.get('command', []))}`, begun {about.get('date', '')}, "
        f"{machine.get('cores', '?')} cores ({machine.get('system', '?')}), "
        f"{about['run_seconds']:.0f} s for {about['subjects']} subjects. {versions}."
    )


def _csv(rows: Sequence[Row]) -> str:
    """One line per method, subject, model (base, chosen or last) and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "subject", "class_noun", "model", "step", "metric", "value", "low", "high", "n"]
    )
    for row in rows:
        last = "chosen" if row.chosen else "last"
        for model, step, scores in (("base", "", row.base), (last, row.step, row.scores)):
            for metric, s in scores.items():
                who = [row.method, row.subject, row.class_noun, model, step, metric]
                writer.writerow([*who, s["value"], s["low"], s["high"], s["n"]])
    return text.getvalue()
