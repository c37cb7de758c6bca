"""known_bad.json and known_bad.md: what each bad run did to the metrics, and who refused it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import write_json
from ldm.errors import explain_disk_errors
from ldm.evaluation.metrics import Score
from ldm.study.known_bad import (
    DEFAULT,
    REPORTING,
    VARIANTS,
    Result,
    Results,
    checks,
    differences,
)
from ldm.study.table import markdown_table, write_text

SHOWN = (
    "subject/fidelity/oracle",
    "subject/identity",
    "subject/setting",
    "subject/accessory",
    "subject/copied/oracle",
    "class/identity",
    "class/pres/oracle",
    "class/diversity/oracle",
    "class/change/colour",
    "unrelated/drift/oracle",
)


def write_known_bad(
    out: Path, results: Results, facts: Mapping[str, Any], failures: Sequence[str]
) -> bool:
    """Write OUT/known_bad.json and .md; whether all is as declared. UserError: disk full."""
    rows = checks(results)
    content = {
        **facts,
        "failures": list(failures),
        "checks": rows,
        "variants": {name: _described(results, name) for name in results},
    }
    with explain_disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "known_bad.json", content)
        write_text(out / "known_bad.md", _markdown(results, rows, facts, failures))
    judged = [_as_declared(name, each) for name in results for each in results[name].values()]
    return all(row["holds"] for row in rows) and all(judged) and not failures


def _as_declared(name: str, result: Result) -> bool:
    return result.accepted != VARIANTS[name].refused


def _described(results: Results, name: str) -> dict[str, Any]:
    runs = {
        subject: {
            "scores": result.measured.scores[REPORTING],
            "accepted": result.accepted,
            "as_declared": _as_declared(name, result),
            "broken_gates": [asdict(gate) for gate in result.broken],
        }
        for subject, result in results[name].items()
    }
    return {
        "what": VARIANTS[name].what,
        "to_be_refused": VARIANTS[name].refused,
        "runs": runs,
        "difference_to_default": differences(results, name, DEFAULT),
        "difference_to_base": differences(results, name, "base"),
    }


def _markdown(
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    failures: Sequence[str],
) -> str:
    parts = [
        "# Runs that are bad in a known way",
        f"Subjects: {', '.join(facts['subjects'])}. Every run has one snapshot, its last; numbers "
        "are of the reporting half of the prompts, the selector judges on the other half.",
        f"`{facts['command']}`, {facts['date']}, {facts['cores']} cores.",
        "## What the selector says",
        _verdicts(results),
        "## Metrics, means over the subjects",
        _metrics(results),
        "## What had to move",
        _moves(rows),
    ]
    if failures:
        parts += ["## Failed", "\n".join(f"- {line}" for line in failures)]
    return "\n\n".join(parts) + "\n"


def _verdicts(results: Results) -> str:
    lines = []
    for name, of in results.items():
        accepted = sum(result.accepted for result in of.values())
        gates = Counter(gate.name for result in of.values() for gate in result.broken)
        shown = ", ".join(f"{gate} ({n})" for gate, n in gates.most_common(5))
        right = all(_as_declared(name, result) for result in of.values())
        said = f"accepted for {accepted} of {len(of)}"
        wanted = "refuse" if VARIANTS[name].refused else "accept"
        lines.append([name, VARIANTS[name].what, wanted, said, "yes" if right else "NO", shown])
    header = ["run", "what", "is to", "selector", "as declared", "broken gates (subjects)"]
    return markdown_table(header, lines)


def _metrics(results: Results) -> str:
    lines = []
    for name, of in results.items():
        cells = [name]
        for metric in SHOWN:
            found = [r.measured.scores[REPORTING].get(metric) for r in of.values()]
            values = [score["value"] for score in found if score is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        lines.append(cells)
    return markdown_table(["run", *SHOWN], lines)


def _moves(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["variant"],
            row["metric"],
            f"{row['direction']} against {row['against']}",
            _signed(row["difference"]),
            "yes" if row["holds"] else "NO",
            row["source"],
        ]
        for row in rows
    ]
    return markdown_table(["run", "metric", "declared", "found", "holds", "source"], lines)


def _signed(score: Score) -> str:
    return f"{score['value']:+.3f} ({score['low']:+.3f} to {score['high']:+.3f})"
