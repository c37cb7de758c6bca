"""Several methods on one page: compare.html, and its numbers as JSON and CSV."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from ldm.checkpoint.files import write_json
from ldm.errors import explain_disk_errors
from ldm.evaluation.compare import Comparison, Method, as_csv, as_json, difference_text
from ldm.evaluation.report import figures, plots, view
from ldm.evaluation.report.data import BASE, number
from ldm.evaluation.report.html import grid_of, render, title, verdict
from ldm.evaluation.report.table import cell
from ldm.evaluation.report.write import write_text
from ldm.evaluation.terms import GROUPS, SPACES, UP, term

NAME = "compare"  # of the files: compare.html, compare.json, compare.csv
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def page(comparison: Comparison) -> str:
    """The whole comparison: verdicts, trade-off, a table per group of metrics, pictures."""
    methods = comparison.methods
    return render(
        "compare.html.j2",
        methods=[
            {
                "letter": letter(place),
                "name": method.name,
                "subject": title(method.run),
                "step": method.key + (", chosen" if method.chosen else ", not chosen"),
                "verdict": verdict(method.run),
            }
            for place, method in enumerate(methods)
        ],
        notes=comparison.notes,
        tradeoffs=_tradeoffs(methods),
        groups=_groups(comparison),
        grid=_grid(methods),
    )


def letter(place: int) -> str:
    """A short name: A, B, ... Z, A2, ..."""
    around = place // len(LETTERS)
    return LETTERS[place % len(LETTERS)] + (str(around + 1) if around else "")


def _groups(comparison: Comparison) -> list[dict[str, Any]]:
    groups: dict[str, list[str]] = {}
    for metric in comparison.metrics:
        groups.setdefault(term(metric).group, []).append(metric)
    return [
        {
            "title": GROUPS[group][0],
            "explanation": GROUPS[group][1],
            "metrics": [_head(metric) for metric in metrics],
            "rows": [
                (letter(place), method.name, [_cell(method, metric) for metric in metrics])
                for place, method in enumerate(comparison.methods)
            ],
        }
        for group, metrics in groups.items()
    ]


def _head(metric: str) -> dict[str, str]:
    told = term(metric)
    arrow = "" if not told.better else "↑" if told.better == UP else "↓"
    return {"metric": metric, "name": told.name, "arrow": arrow, "better": told.better}


def _cell(method: Method, metric: str) -> dict[str, Any]:
    change = method.differences.get(metric)
    return {
        "metric": metric,
        "score": cell(method.name, method.scores.get(metric), term(metric).share),
        "change": difference_text(change, metric) if change else "",
        "paired": change is None or change.paired,
        "verdict": change.verdict(metric) if change else "",
    }


def _tradeoffs(methods: "list[Method]") -> list[Markup]:
    """Fidelity over drift, a point per method, and the base where they all have the same."""
    drawn = []
    for about, words in figures.DRIFTS.items():
        axes = figures.axes_of((method.scores for method in methods), about)
        if axes is None:
            continue
        marks = [
            figures.mark(letter(place), method.scores, axes) for place, method in enumerate(methods)
        ]
        values = [number(m.run.scores(BASE).get(axes[1], {}).get("value")) for m in methods]
        if len(set(values)) == 1:
            marks.insert(0, figures.mark("base", methods[0].run.scores(BASE), axes, BASE))
        space = SPACES[axes[1].removeprefix(figures.FIDELITY)]
        names = (words, f"likeness to the subject ({space})")
        plot = plots.tradeoff([mark for mark in marks if mark], names, [], joined=False)
        drawn.append(Markup(plots.svg(plot, "Fidelity against drift")))
    return drawn


def _grid(methods: "list[Method]") -> dict[str, Any] | None:
    """Pictures of every method for the prompts of them all."""
    shown = [
        view.Column(letter(place), method.run.drawn[method.key])
        for place, method in enumerate(methods)
        if method.key in method.run.drawn
    ]
    base = methods[0].run.drawn.get(BASE)
    if base is not None:
        shown.insert(0, view.Column("untouched base", base, "base"))
    return grid_of(shown, "subject") if shown else None


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.html, compare.json and compare.csv; return their paths.

    UserError: disk not writable.
    """
    paths = [folder / f"{NAME}.{suffix}" for suffix in ("html", "json", "csv")]
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(paths[0], page(comparison))
    with explain_disk_errors(paths[1]):
        write_json(paths[1], as_json(comparison))
    write_text(paths[2], as_csv(comparison))
    return paths
