"""Plots as SVG that takes its colours from the page (light or dark), and as pictures.

matplotlib's Figure is used alone, without pyplot: nothing global is touched. A figure is drawn in
the light colours of PALETTE, each of which stands for a variable of the page's style in the SVG.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.evaluation.report.labels import label_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# name -> colours on a light and on a dark page; all light ones differ. Okabe and Ito's colours,
# which can be told apart by the colour-blind, darkened and lightened for the page.
PALETTE = {
    "ink": ("#1c2024", "#eceef0"),
    "soft": ("#697078", "#a3abb3"),
    "faint": ("#d3d8dd", "#3c444c"),
    "gold": ("#b26a00", "#ffb84d"),
    "oracle": ("#0067a6", "#63b8ee"),
    "dino": ("#c24e00", "#ff9a5c"),
    "clip": ("#00805e", "#4bd1a6"),
    "lpips": ("#9c4482", "#e79bcb"),
}
COLOURS = {name: light for name, (light, _) in PALETTE.items()}
SERIES = ("oracle", "dino", "clip", "lpips")


@dataclass(frozen=True)
class Point:
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mark:
    """A model between drift (x) and fidelity (y). kind: "base", "chosen" or ""."""

    label: str
    x: Point
    y: Point
    kind: str = ""


@dataclass(frozen=True)
class Line:
    """A metric over steps; the base is step 0. limit: its ceiling or floor."""

    label: str
    colour: str  # key of COLOURS
    points: list[tuple[int, Point]]
    limit: float | None = None


def tradeoff(
    marks: Sequence[Mark],
    axes_names: tuple[str, str],
    limits: Sequence[tuple[str, str, float]],
    size: tuple[float, float] = (6.0, 4.4),
    joined: bool = True,
) -> "Figure":
    """Fidelity over drift, with intervals; up and to the left is better.

    limits: lines as (axis "x" or "y", label, value). joined: in the order of `marks`, which are
    then steps of one run.
    """
    figure, axes = _axes(size)
    if joined:
        xs, ys = [mark.x.value for mark in marks], [mark.y.value for mark in marks]
        axes.plot(xs, ys, color=COLOURS["faint"], linewidth=1.5, zorder=1)
    for mark in marks:
        colour = COLOURS[{"base": "soft", "chosen": "gold"}.get(mark.kind, "oracle")]
        x, y = mark.x, mark.y
        axes.errorbar(
            *([x.value], [y.value]),
            xerr=[[max(0.0, x.value - x.low)], [max(0.0, x.high - x.value)]],
            yerr=[[max(0.0, y.value - y.low)], [max(0.0, y.high - y.value)]],
            fmt={"base": "s", "chosen": "*"}.get(mark.kind, "o"),
            markersize={"chosen": 15}.get(mark.kind, 6.5),
            color=colour,
            elinewidth=1,
            zorder=3,
        )
    colours = [COLOURS[name] for name in ("clip", "dino", "lpips", "soft")]
    for place, (axis, label, value) in enumerate(limits):
        draw = axes.axvline if axis == "x" else axes.axhline
        dashes = ("--", ":", "-.")[place % 3]
        draw(value, color=colours[place % 4], label=label, zorder=1, linestyle=dashes)
    axes.set_xlabel(f"{axes_names[0]}  →  worse", color=COLOURS["soft"])
    axes.set_ylabel(f"{axes_names[1]}  →  better", color=COLOURS["soft"])
    axes.margins(0.12)
    _legend(axes, loc="lower right")
    label_apart(
        figure,
        axes,
        [
            (
                mark.label,
                (mark.x.value, mark.y.value),
                COLOURS["gold" if mark.kind == "chosen" else "ink"],
            )
            for mark in sorted(marks, key=lambda mark: not mark.kind)  # those of a kind first
        ],
        COLOURS["soft"],
    )
    return figure


def loss_curve(
    name: str,
    curve: Sequence[tuple[int, float]],
    heldout: Line | None,
    chosen: int | None,
    size: tuple[float, float] = (6.4, 2.9),
) -> "Figure":
    """A training loss, raw and smoothed, with held-out losses as points."""
    figure, axes = _axes(size)
    if curve:
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        axes.plot(steps, values, color=COLOURS["soft"], alpha=0.4, linewidth=0.7, label="each step")
        axes.plot(steps, smooth(values), color=COLOURS["oracle"], linewidth=1.8, label="smoothed")
    if heldout is not None and heldout.points:
        _errorbars(axes, heldout)
    _over_steps(axes, chosen)
    if curve and len(values) > 20:  # a few early outliers do not squash the rest
        more = [point.high for _, point in heldout.points] if heldout else []
        shown = sorted([*values, *more])
        top = shown[int(0.995 * (len(shown) - 1))]
        axes.set_ylim(max(0.0, shown[0] - 0.05 * top), 1.08 * top)
    axes.set_title(name, fontsize=10, color=COLOURS["ink"], loc="left")
    axes.set_xlabel("step", color=COLOURS["soft"])
    _legend(axes, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=3, columnspacing=1.0)
    return figure


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential running mean, unbiased at the start, over about a twentieth of the values."""
    keep = 1 - 1 / max(5.0, len(values) / 20)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def metric_curves(
    title: str,
    lines: Sequence[Line],
    chosen: int | None,
    size: tuple[float, float] = (3.7, 2.5),
) -> "Figure":
    """Metrics over steps with bands for their intervals; dotted: ceiling or floor."""
    figure, axes = _axes(size)
    for line in lines:
        steps = [step for step, _ in line.points]
        colour = COLOURS[line.colour]
        values = [point.value for _, point in line.points]
        lows, highs = [p.low for _, p in line.points], [p.high for _, p in line.points]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, values, color=colour, marker="o", markersize=3.5, label=line.label)
        if line.limit is not None:
            axes.axhline(line.limit, color=colour, linestyle=":", linewidth=1)
    _over_steps(axes, chosen)
    axes.set_title(title, fontsize=9.5, color=COLOURS["ink"], loc="left")
    axes.margins(y=0.12)
    if len(lines) > 1:
        _legend(axes, fontsize=7.5)
    return figure


def svg(figure: "Figure", title: str) -> str:
    """The figure as an <svg> for inside a page: no fixed size, no colour or address of its own.

    Its ids start with a hash of its content, so that several fit into one page.
    """
    import hashlib
    from html import escape

    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ldm", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    head, rest = text.split(">", 1)
    return f"{head}><title>{escape(title)}</title>{rest}"


def picture(figure: "Figure", width: int) -> Image.Image:
    """The figure on white, `width` pixels wide."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=width / figure.get_figwidth(), facecolor="white")
    file.seek(0)
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _axes(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["soft"])
    axes.tick_params(colors=COLOURS["soft"], labelsize=8.5)
    axes.grid(color=COLOURS["faint"], linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _errorbars(axes: "Axes", line: Line) -> None:
    errors = [
        [max(0.0, point.value - point.low) for _, point in line.points],
        [max(0.0, point.high - point.value) for _, point in line.points],
    ]
    steps, values = [s for s, _ in line.points], [p.value for _, p in line.points]
    colour = COLOURS[line.colour]
    axes.errorbar(steps, values, yerr=errors, fmt="D", markersize=5, color=colour, label=line.label)


def _over_steps(axes: "Axes", chosen: int | None) -> None:
    """Whole steps from 0 on, the chosen one marked."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.set_xlim(left=-0.03 * axes.get_xlim()[1])
    if chosen is not None:
        axes.axvline(chosen, color=COLOURS["gold"], linewidth=1.2, linestyle="--", zorder=1)


def _legend(axes: "Axes", **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"fontsize": 8, "frameon": False, "labelcolor": COLOURS["soft"], **options})
