"""The grid shows every picture and every label."""

import numpy as np
import pytest
from PIL import Image

from ldm.sampling.grid import labelled_grid, without_labels

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]


def tiles(size: tuple[int, int] = (16, 16)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(-1).sum())


def test_every_picture_is_there_whole() -> None:
    red, green, blue, yellow = tiles()
    sheet = labelled_grid([[red, green, blue], [yellow]], ["one", "two"], tile=32)
    assert [count(sheet, colour) for colour in COLOURS] == [32 * 32] * 4  # enlarged twice
    large = labelled_grid([tiles((40, 30))], tile=32)
    assert [count(large, colour) for colour in COLOURS] == [40 * 30] * 4  # not enlarged


@pytest.mark.parametrize("where", ["labels", "columns"])
def test_labels_are_drawn(where: str) -> None:
    def sheet(text: str) -> Image.Image:
        return labelled_grid([tiles()[:1]], **{where: [text]})  # type: ignore[arg-type]

    written = sheet("a drawing of sks robot")
    blank = sheet(" ")
    ink = (np.asarray(written).min(-1) < 100).sum()
    assert ink > (np.asarray(blank).min(-1) < 100).sum() + 50


@pytest.mark.parametrize("text", ["写真 🤖 é", "x" * 500, "word " * 300, "", "two\nlines"])
def test_any_label_leaves_the_pictures_whole(text: str) -> None:
    sheet = labelled_grid([tiles(), tiles()], [text, text], [text] * 4, tile=64)
    assert [count(sheet, colour) for colour in COLOURS] == [2 * 64 * 64] * 4


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least one"):
        labelled_grid([[]])
    with pytest.raises(ValueError, match="2 labels for 1 rows"):
        labelled_grid([tiles()], ["a", "b"])


def test_labels_can_be_cut_off_again() -> None:
    rows = [[Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")] for _ in range(3)]
    bare = without_labels(labelled_grid(rows, ["a", "b", "c"]), 3, 2)
    assert bare.tobytes() == labelled_grid(rows).tobytes()
