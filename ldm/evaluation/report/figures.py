"""Which numbers of a run are drawn in which plot."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ldm.evaluation.report import plots
from ldm.evaluation.report.data import BASE, RunFiles, number
from ldm.evaluation.report.plots import Line, Mark, Point
from ldm.evaluation.terms import SPACES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIDELITY = "subject/fidelity/"
DRIFT = "class/drift/"
DRIFTS = {"class": "drift of the class", "unrelated": "drift of other things"}
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
    "Other things are drawn as told": ("unrelated/class", "unrelated/colour", "unrelated/setting"),
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


def axes_of(scores: Iterable[dict[str, Any]], about: str) -> tuple[str, str] | None:
    """Metrics for drift (of pictures `about` a kind) and fidelity that all these models have.

    Both of one space: the oracle's, DINO's or CLIP's. None where there is no such pair.
    """
    sets = [set(one) for one in scores if one]
    for space in SPACES if sets else ():
        axes = (f"{about}/drift/{space}", FIDELITY + space)
        if all(metrics.issuperset(axes) for metrics in sets):
            return axes
    return None


def mark(label: str, scores: dict[str, Any], axes: tuple[str, str], kind: str = "") -> Mark | None:
    """A model as a point of the trade-off; the base has drifted from itself by nothing."""
    x = point(scores.get(axes[0])) or (Point(0.0, 0.0, 0.0) if kind == BASE else None)
    y = point(scores.get(axes[1]))
    return Mark(label, x, y, kind) if x and y else None


def tradeoffs(run: RunFiles) -> "list[Figure]":
    """Fidelity over drift of the class and of other things, for base and snapshots."""
    steps = [key for key in run.steps if run.scores(key)]
    figures = []
    for about, words in DRIFTS.items():
        axes = axes_of((run.scores(key) for key in steps), about)
        if axes is None:
            continue
        found = [mark("base", run.scores(BASE), axes, BASE)]
        for key in steps:
            chosen = key == run.chosen
            label = f"{key}, chosen" if chosen else key
            found.append(mark(label, run.scores(key), axes, "chosen" if chosen else ""))
        space = SPACES[axes[1].removeprefix(FIDELITY)]
        names = (words, f"likeness to the subject ({space})")
        figures.append(plots.tradeoff([m for m in found if m], names, _limits(run, axes)))
    return figures


def _limits(run: RunFiles, axes: tuple[str, str]) -> list[tuple[str, str, float]]:
    """Axis, label and value of each gate's limit to either metric, and of the ceiling."""
    found = {}
    ceiling = point((run.evaluation.get("ceiling") or {}).get(axes[1]))
    if ceiling:
        found["y", "ceiling: real pictures"] = ceiling.value
    for gate in [gate for gates in (run.evaluation.get("gates") or {}).values() for gate in gates]:
        metric, *note = gate["name"].split(" (", 1)
        limit = number(gate.get("limit"))
        if metric not in axes or limit is None or "ceiling" in gate["name"]:
            continue
        axis = "xy"[axes.index(metric)]
        label = f"gate: {note[0].rstrip(')')}" if note else "gate"
        found.setdefault((axis, label), limit)
    return [(*key, value) for key, value in found.items()]


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
        colours = _colours(metrics)
        drawn = [_line(run, metric, _short(metric), colours[metric]) for metric in metrics]
        lines = [line for line in drawn if line]
        if lines:
            figures.append(plots.metric_curves(title, lines, _step(run.chosen)))
    return figures


def _short(metric: str) -> str:
    """What tells a metric from the others of its panel."""
    about, *_, last = metric.split("/")
    return about if last == "identity" else SPACES.get(last, last.replace("_", " "))


def _colours(metrics: list[str]) -> dict[str, str]:
    """A colour for each: that of its space, where it has one, else one that is free."""
    own = {
        metric: space
        for metric in metrics
        for space in plots.SERIES
        if metric.rsplit("/", 1)[-1].startswith(space)
    }
    free = [colour for colour in (*plots.SERIES, "soft", "ink") if colour not in own.values()]
    others = [metric for metric in metrics if metric not in own]
    return own | {metric: free[place % len(free)] for place, metric in enumerate(others)}


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
