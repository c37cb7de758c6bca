"""Which numbers of a run are drawn in which plot."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ldm.evaluation.report import plots
from ldm.evaluation.report.data import BASE, RunFiles, number
from ldm.evaluation.report.plots import Line, Mark, Point
from ldm.evaluation.report.terms import SPACES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIDELITY = "subject/fidelity/"
DRIFT = "class/drift/"
# Title of a panel -> the metrics in it, as pattern "about/name" or "about/name/" + what follows.
PANELS: dict[str, tuple[str, ...]] = {
    "Likeness to the subject": (FIDELITY,),
    "Recognised as the subject, leak": ("subject/identity", "class/identity", "unrelated/identity"),
    "The prompt is followed": ("subject/prompt/", "subject/setting", "subject/accessory"),
    "Pictures of one subject prompt differ": ("subject/diversity/",),
    "Pictures of the class prompt differ": ("class/diversity/",),
    "Copied from a training picture": ("subject/copied/",),
    "PRES: class looks like the subject": ("class/pres/",),
    "Drift of the class": (DRIFT,),
    "Drift of other things": ("unrelated/drift/",),
    "KID of the class": ("class/kid/",),
    "Change of the class's attributes": ("class/change/",),
}


def point(score: Any) -> Point | None:
    """A score with finite numbers, or None; without an interval both its ends are the value."""
    if not isinstance(score, dict):
        return None
    value = number(score.get("value"))
    if value is None:
        return None
    low, high = number(score.get("low")), number(score.get("high"))
    return Point(value, value if low is None else low, value if high is None else high)


def _common(names: Iterable[set[str]], wanted: str) -> str | None:
    """The metric beginning with `wanted` that all of them have: the oracle's, DINO's or CLIP's."""
    sets = list(names)
    for space in SPACES:
        if sets and all(wanted + space in metrics for metrics in sets):
            return wanted + space
    return None


def axes_of(scores: Iterable[dict[str, Any]]) -> tuple[str, str] | None:
    """Metrics for drift and fidelity that all these models have, of one space if that can be."""
    sets = [set(one) for one in scores if one]
    fidelity = _common(sets, FIDELITY)
    if fidelity is None:
        return None
    own = DRIFT + fidelity.removeprefix(FIDELITY)
    drift = own if all(own in metrics for metrics in sets) else _common(sets, DRIFT)
    return (drift, fidelity) if drift else None


def mark(label: str, scores: dict[str, Any], axes: tuple[str, str], kind: str = "") -> Mark | None:
    """A model as a point of the trade-off; the base has drifted from itself by nothing."""
    x = point(scores.get(axes[0])) or (Point(0.0, 0.0, 0.0) if kind == BASE else None)
    y = point(scores.get(axes[1]))
    return Mark(label, x, y, kind) if x and y else None


def tradeoff(run: RunFiles, size: tuple[float, float] = (6.4, 4.2)) -> "Figure | None":
    """Fidelity over drift for base and snapshots; None where either was not measured."""
    steps = [key for key in run.steps if run.scores(key)]
    axes = axes_of(run.scores(key) for key in steps)
    if axes is None:
        return None
    found = [mark("base", run.scores(BASE), axes, BASE)]
    for key in steps:
        chosen = key == run.chosen
        label = f"{key} (chosen)" if chosen else key
        found.append(mark(label, run.scores(key), axes, "chosen" if chosen else ""))
    limits = {axis: _limit(run, metric) for axis, metric in zip("xy", axes, strict=True)}
    ceiling = point((run.evaluation.get("ceiling") or {}).get(axes[1]))
    limits["ceiling"] = ceiling.value if ceiling else None
    space = SPACES[axes[1].removeprefix(FIDELITY)]
    names = ("drift of the class", f"likeness to the subject ({space})")
    drawable = {name: limit for name, limit in limits.items() if limit is not None}
    return plots.tradeoff([m for m in found if m], names, drawable, size)


def _limit(run: RunFiles, metric: str) -> float | None:
    """The limit that gates set to a metric."""
    for gates in (run.evaluation.get("gates") or {}).values():
        for gate in gates:
            if metric in gate["name"] and number(gate.get("limit")) is not None:
                return number(gate["limit"])
    return None


def losses(run: RunFiles) -> "list[Figure]":
    """The subject's and the class images' loss while training, held-out losses as points."""
    figures = []
    for name, metric, title in (
        ("loss/instance", "loss/subject", "Loss on the subject's pictures (loss/instance)"),
        ("loss/prior", "loss/class", "Loss on class images (loss/prior)"),
    ):
        line = _line(run, metric, "held out", "dino")
        curve = run.losses.get(name, [])
        if curve or line:
            figures.append(plots.loss_curve(title, curve, line, _step(run.chosen)))
    return figures


def panels(run: RunFiles) -> "list[Figure]":
    """Metrics over steps, one figure for each of PANELS that has a measured snapshot."""
    measured = set().union(*(run.scores(key) for key in [BASE, *run.steps]))
    figures = []
    for title, patterns in PANELS.items():
        metrics = [
            metric
            for pattern in patterns
            for metric in sorted(measured)
            if metric == pattern or (pattern.endswith("/") and metric.startswith(pattern))
        ]
        lines = [
            line
            for place, metric in enumerate(metrics)
            if (line := _line(run, metric, *_name_and_colour(metric, patterns, place)))
        ]
        if lines:
            figures.append(plots.metric_curves(title, lines, _step(run.chosen)))
    return figures


def _name_and_colour(metric: str, patterns: tuple[str, ...], place: int) -> tuple[str, str]:
    about, *_, last = metric.split("/")
    colour = next((name for name in plots.SERIES if last.startswith(name)), "")
    if any(metric.startswith(p) for p in patterns if p.endswith("/")) and len(patterns) == 1:
        name = SPACES.get(last, last)
    else:
        name = about if last == "identity" else SPACES.get(last, last)
    return name, colour or plots.SERIES[(place + 1) % len(plots.SERIES)]


def _line(run: RunFiles, metric: str, label: str, colour: str) -> Line | None:
    """A metric of the base, at step 0, and of the snapshots; None without any snapshot."""
    points = [(_step(key), point(run.scores(key).get(metric))) for key in run.steps]
    known = [(step, found) for step, found in points if step is not None and found]
    if not known:
        return None
    base = point(run.scores(BASE).get(metric))
    limits = [(run.evaluation.get(name) or {}).get(metric) for name in ("ceiling", "floor")]
    limit = next((p.value for p in map(point, limits) if p), None)
    return Line(label, colour, [(0, base), *known] if base else known, limit)


def _step(key: str | None) -> int | None:
    return int(key) if key is not None and key.isdecimal() else None
