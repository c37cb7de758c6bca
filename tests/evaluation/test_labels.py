"""Labels of points that lie close: read, and taken for no other's."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ldm.evaluation.report.labels import label_apart

CLOSE = [(0.071, 0.60), (0.073, 0.61), (0.075, 0.62), (0.075, 0.63), (0.072, 0.625)]


@pytest.mark.parametrize("points", [CLOSE, CLOSE[:1], [(0.08, 0.4)] * 4])
def test_labels_cover_neither_each_other_nor_points(points: list[tuple[float, float]]) -> None:
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.04, 0.13], [0.1, 0.7])
    label_apart(
        figure, axes, [(f"{n}00", point, "black") for n, point in enumerate(points)], "gray"
    )
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts if isinstance(text, Annotation)]
    assert len(boxes) == len(points)
    assert all(Bbox.intersection(one, other) is None for one, other in combinations(boxes, 2))
    spots = axes.transData.transform(points)
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    inside = axes.bbox
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
