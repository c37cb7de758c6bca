"""Labels of points in a plot: each near its own, none on another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox, BboxBase

# Where a label may stand, in points from its point; near ones first.
PLACES = [
    (far * math.cos(angle), far * math.sin(angle))
    for far in (11, 25, 40, 55)
    for angle in (math.pi * part / 6 for part in (1, 11, 5, 7, 2, 10, 4, 8, 3, 9))
]
ROUND = 7  # pixels from a point that no label covers
STRANGE = 50  # pixels covered that weigh as much as to stand nearer to another's point


def label_apart(
    figure: "Figure",
    axes: "Axes",
    labels: Sequence[tuple[str, tuple[float, float], str]],
    line: str,
) -> None:
    """Write each label (text, point, colour) where it covers least, with a line to its point.

    The first ones choose first. All else must have been drawn: limits do not change any more.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # where things lie is known only then
    spots = axes.transData.transform([point for _, point, _ in labels])
    taken = [Bbox.from_extents(x - ROUND, y - ROUND, x + ROUND, y + ROUND) for x, y in spots]
    arrow = {"arrowstyle": "-", "color": line, "linewidth": 0.6, "shrinkB": 3}
    for (text, point, colour), own in zip(labels, spots, strict=True):
        label = axes.annotate(text, point, xytext=PLACES[0], textcoords="offset points",
                              fontsize=9, color=colour, arrowprops=arrow, zorder=4)  # fmt: skip
        costs = []
        for place in PLACES:
            box = _placed(label, place)
            strange = sum(_apart(box, spot) < _apart(box, own) for spot in spots)
            costs.append(_covered(box, taken, axes.bbox) + STRANGE * strange)
        taken.append(_placed(label, PLACES[costs.index(min(costs))]))


def _placed(label: "Annotation", place: tuple[float, float]) -> "Bbox":
    """Put the label at that one of PLACES; return what its text then takes, in pixels."""
    from matplotlib.text import Text

    right, up = place
    label.set_position(place)
    label.set_horizontalalignment("center" if abs(right) < 1 else "left" if right > 0 else "right")
    label.set_verticalalignment("bottom" if up > 0 else "top")
    label.get_window_extent()  # brings text and line to their places
    return Text.get_window_extent(label)  # the text alone


def _apart(box: "Bbox", spot: Sequence[float]) -> float:
    """Pixels between a spot and the nearest of the box."""
    nearest = (min(max(spot[0], box.x0), box.x1), min(max(spot[1], box.y0), box.y1))
    return math.dist(spot, nearest)


def _covered(box: "Bbox", taken: Sequence["Bbox"], inside: "BboxBase") -> float:
    """Area of `box` that lies on others or outside, in pixels; what lies on several counts so."""
    from matplotlib.transforms import Bbox

    def common(other: "BboxBase") -> float:
        both = Bbox.intersection(box, other)
        return 0.0 if both is None else float(both.width * both.height)

    return sum(common(one) for one in taken) + box.width * box.height - common(inside)
