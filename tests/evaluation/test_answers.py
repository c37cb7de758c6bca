"""Questions, readings and what is made of them."""

import numpy as np
import pytest

from ldm.evaluation.answers import ceiling, scores
from ldm.evaluation.oracle import Question, Reading

EAST, NORTH = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def reading(
    noun: str = "dog",
    setting: str = "at night",
    embedding: np.ndarray = EAST,
    none: bool = False,
) -> Reading:
    return Reading({"class": noun, "setting": setting}, none, embedding)


def test_scores_count_only_what_was_asked() -> None:
    beach = Question("subject", "[V] dog on the beach", {"class": "dog", "setting": "on the beach"})
    plain = Question("class", "a dog", {"class": "dog"})
    asked = [beach, beach, beach, plain, plain]
    readings = [
        reading("dog", "on the beach"),
        reading("dog", "at night"),
        reading("dog", "on the beach", none=True),  # a lucky guess
        reading("dog", embedding=NORTH),
        reading("cat", embedding=EAST),
    ]
    result = scores(asked, readings, [reading(embedding=EAST)])
    values = {name: score["value"] for name, score in result.items()}
    assert values == pytest.approx(
        {
            "subject/class": 2 / 3,
            "subject/setting": 1 / 3,
            "subject/none": 1 / 3,
            "subject/similarity": 1.0,
            "class/class": 1 / 2,
            "class/none": 0.0,
            "class/diversity": 1.0,
            "class/similarity": 0.5,
        }
    )
    assert result["subject/setting"]["n"] == 3


def test_ceiling_leaves_self_pairs_out() -> None:
    assert ceiling([reading(embedding=EAST), reading(embedding=NORTH)])["value"] == pytest.approx(
        0.0
    )
