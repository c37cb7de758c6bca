"""report.html: one file with all in it, which opens from a disk, on a phone and on paper."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.evaluation.report import figures, plots, view
from ldm.evaluation.report.data import BASE, RunFiles, number
from ldm.evaluation.report.live import Status, sections
from ldm.evaluation.report.table import gate_rows, metric_groups

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

SAMPLES = 4  # grids drawn while training, shown until there are better pictures
SAMPLE_SIDE = 640  # pixels
SHORT = ("command", "seed", "steps", "base")  # facts that stand outside of the folded ones


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; every text is escaped unless it is Markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(palette=plots.PALETTE, **values)


def page(run: RunFiles, status: Status | None = None) -> str:
    """The whole report of a run; sections that nothing is known about are left out.

    status: of a run that has not ended, whose page is written again and again: it shows the grids
    drawn while training in the place of the pictures that are measured, which are many.
    """
    steps, gates = gate_rows(run)
    columns = [] if status else view.columns(run)
    return render(
        "report.html.j2",
        title=title(run),
        subtitle=f"Report of run {run.name}",
        verdict=verdict(run),
        **sections(run, status),
        reasons=run.evaluation.get("reasons") or [],
        **_subject(run),
        grid=_grid(run, columns),
        samples=[] if columns else _samples(run),
        samples_count=len(run.samples),
        tradeoffs=[_svg(plot, "Fidelity against drift") for plot in figures.tradeoffs(run)],
        losses=[_svg(plot, "Loss over steps") for plot in figures.losses(run)],
        panels=[_svg(plot, "Metrics over steps") for plot in figures.panels(run)],
        groups=metric_groups(run),
        heads=heads(run, [BASE, *(run.evaluation.get("snapshots") or {})]),
        metrics_note=_metrics_note(run),
        gates=gates,
        gate_heads=heads(run, steps),
        advice=_advice(run, steps),
        missing=[] if status else missing(run),
        rates=_rates(run),
        kept=[] if status else _kept(run),
        short_facts=[(_words(key), _text(run.facts[key])) for key in SHORT if key in run.facts],
        facts=_facts(run),
        config=run.config,
    )


def title(run: RunFiles) -> str:
    """The subject, as it is called in prompts."""
    subject = {**run.facts, **(run.evaluation.get("subject") or {})}
    words = [str(subject[key]) for key in ("identifier", "class_noun") if subject.get(key)]
    return " ".join(words) or run.name


def verdict(run: RunFiles) -> str:
    """The evaluation's own two sentences, else how far the run is."""
    if text := run.evaluation.get("verdict"):
        return str(text)
    if run.evaluation:
        chosen = f"Step {run.chosen} is chosen." if run.chosen else "No snapshot is chosen."
        return f"{len(run.evaluation.get('snapshots') or {})} snapshots were measured. {chosen}"
    done = max((curve[-1][0] for curve in run.losses.values()), default=0)
    total = f" of {run.facts['steps']}" if "steps" in run.facts else ""
    return f"Not evaluated yet. Training is at step {done}{total}."


def missing(run: RunFiles) -> list[str]:
    """What could not be measured or shown, with the reason of each."""
    unmeasured = [f"{name}: {reason}" for name, reason in _items(run, "missing")]
    return [*unmeasured, *run.notes]


def heads(run: RunFiles, keys: Sequence[str]) -> list[dict[str, str]]:
    """Heads of columns, in the order of steps."""
    known = [key for key in [BASE, *run.steps] if key in keys]
    return [
        {"title": "untouched base", "mark": "base"}
        if key == BASE
        else {"title": f"step {key}", "mark": "chosen" if key == run.chosen else ""}
        for key in known
    ]


def shown(path: Path | None, alt: str) -> dict[str, str | None]:
    """A picture for the template; without a source where there is none or it is damaged."""
    return {"src": view.data_url(path) if path else None, "alt": alt}


def grid_of(columns: Sequence[view.Column], about: str) -> dict[str, Any] | None:
    """Heads and rows of a grid of pictures; None where there are none."""
    rows = view.rows(columns, about)
    if not rows:
        return None
    return {
        "heads": [{"title": column.title, "mark": column.mark} for column in columns],
        "rows": [
            {
                "prompt": row.prompt,
                "half": row.half,
                "cells": [
                    [shown(path, f"{column.title}: {row.prompt}") for path in cell]
                    for column, cell in zip(columns, row.cells, strict=True)
                ],
            }
            for row in rows
        ],
        "left_out": "",
    }


def _grid(run: RunFiles, columns: Sequence[view.Column]) -> dict[str, Any] | None:
    grid = grid_of(columns, "subject")
    left_out = len([key for key in run.drawn if key != BASE])
    left_out -= len([column for column in columns if column.mark != "base"])
    if grid and left_out:
        grid["left_out"] = f"{left_out} more snapshots are in the table below."
    return grid


def _subject(run: RunFiles) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name in ("training", "heldout"):
        paths = getattr(run, name)
        parts[name] = [shown(path, path.name) for path in paths[: view.SUBJECT_PICTURES]]
        parts[f"{name}_count"] = len(paths)
    return parts


def _samples(run: RunFiles) -> list[dict[str, str]]:
    steps = sorted(run.samples)
    few = steps if len(steps) <= SAMPLES else [steps[0], *steps[1 - SAMPLES :]]
    found = []
    for step in few:
        try:
            picture = view.opened(run.samples[step], SAMPLE_SIDE)
        except UserError:
            continue
        title = f"step {step}" if step else "untouched base"
        found.append({"src": view.encoded(picture), "alt": title, "title": title})
    return found


def _kept(run: RunFiles) -> list[dict[str, Any]]:
    """Class and unrelated pictures of the base and the chosen, else the last, snapshot."""
    steps = [key for key in run.steps if key in run.drawn]
    if BASE not in run.drawn or not steps:
        return []
    key = run.chosen if run.chosen in steps else steps[-1]
    assert key is not None
    named = {"class": "What became of its class", "unrelated": "What became of other things"}
    kept = []
    for about, words in named.items():
        found = view.pairs(run.drawn[BASE], run.drawn[key], about, view.CLASS_PICTURES)
        pictures = [
            (shown(before, f"base: {prompt}, seed {seed}"), shown(after, f"step {key}: {prompt}"))
            for before, after, prompt, seed in found
        ]
        if pictures:
            after = f"the chosen step {key}" if key == run.chosen else f"step {key}"
            kept.append({"about": about, "title": words, "after": after, "pictures": pictures})
    return kept


def _advice(run: RunFiles, steps: Sequence[str]) -> list[str]:
    """What the failed gates say, each once, with the steps it was said of."""
    said: dict[str, list[str]] = {}
    for step in steps:
        for gate in run.evaluation["gates"][step]:
            if not gate.get("passed") and gate.get("advice"):
                said.setdefault(str(gate["advice"]), []).append(step)
    return [
        f"{'step' if len(dict.fromkeys(at)) == 1 else 'steps'} "
        f"{', '.join(dict.fromkeys(at))}: {advice}"
        for advice, at in said.items()
    ]


def _metrics_note(run: RunFiles) -> str:
    """What the numbers of the table are of."""
    text = "Small: the 95 % interval; n: the number of observations."
    prompts = (run.evaluation.get("reporting") or {}).get("prompts")
    if prompts:
        text += f" Subject prompts: the {len(prompts)} that took no part in choosing."
    references = run.evaluation.get("references") or {}
    if compared := references.get("compared_with"):
        count = references.get(compared)
        kind = {"heldout": "held-out"}.get(compared, compared)
        text += f" Likeness is to the subject's {_text(count)} {kind} pictures."
    return text


def _rates(run: RunFiles) -> list[tuple[str, str]]:
    """The oracle's threshold, and how often it accepts what in percent."""
    return [
        (
            _words(name),
            _text(rate) if name == "threshold" or number(rate) is None else f"{100 * rate:.2f} %",
        )
        for name, rate in _items(run, "oracle")
    ]


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """run.json without the configuration, and what evaluation.json says of itself."""
    told = {key: value for key, value in run.facts.items() if key not in ("config", *SHORT)}
    keys = ("seed", "images", "sampling", "precision", "versions", "base_fingerprint", "subject")
    told |= {
        f"evaluation {key}": run.evaluation[key]
        for key in (*keys, "references")
        if key in run.evaluation
    }
    return [(_words(key), _text(value)) for key, value in told.items()]


def _items(run: RunFiles, key: str) -> list[tuple[str, Any]]:
    content = run.evaluation.get(key)
    return list(content.items()) if isinstance(content, Mapping) else []


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    """A value of a JSON file, for people."""
    if isinstance(value, float):
        return "–" if number(value) is None else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def _svg(figure: "Figure", title: str) -> "Markup":
    from markupsafe import Markup

    return Markup(plots.svg(figure, title))
