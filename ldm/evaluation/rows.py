"""A row of numbers per picture, and what rows and features make together: the metrics."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm.evaluation import metrics
from ldm.evaluation.measured import Row, Scores, Seen, is_text
from ldm.evaluation.pictures import Asked, files_of

NONE = "none of these"  # in place of an attribute's word, where the oracle sees nothing it knows
Places = Sequence[int]  # of rows


def rows_of(asked: Sequence[Asked]) -> list[Row]:
    """What each picture is and what it was asked for."""
    return [
        {
            "file": name,
            "about": one.about,
            "half": one.half,
            "prompt": one.prompt,
            "seed": one.seed,
            **{f"asked/{attribute}": word for attribute, word in one.expected.items()},
        }
        for name, one in zip(files_of(asked), asked, strict=True)
    ]


def places_of(rows: Sequence[Row], about: str, half: str = "") -> list[int]:
    """Where the rows of one kind are that belong to a half; without one, all of them."""
    return [
        place
        for place, row in enumerate(rows)
        if row["about"] == about and (not half or row["half"] in ("", half))
    ]


def add_readings(rows: list[Row], asked: Sequence[Asked], seen: Seen, own: np.ndarray) -> None:
    """What the oracle reads: words, whether they are right, and the subject itself (`own`).

    Words of a picture that is none of the oracle's world are a guess, and never right.
    "prompt/oracle" of a subject picture: the share of the words asked for that are right.
    """
    for row, one, reading, accepted in zip(rows, asked, seen.readings, own, strict=True):
        row |= {f"read/{attribute}": word for attribute, word in reading.words.items()}
        right = {
            attribute: int(not reading.none and reading.words[attribute] == word)
            for attribute, word in one.expected.items()
        }
        row |= {**right, "none": int(reading.none), "identity": int(accepted)}
        if one.about == "subject" and right:
            row["prompt/oracle"] = sum(right.values()) / len(right)


def add_similarities(
    rows: list[Row], space: str, drawn: np.ndarray, references: np.ndarray
) -> None:
    """Mean cosine to the subject's pictures: fidelity of subject pictures, PRES of class ones."""
    names = {"subject": f"fidelity/{space}", "class": f"pres/{space}"}
    for row, cosine in zip(rows, (drawn @ references.T).mean(axis=1).tolist(), strict=True):
        if name := names.get(row["about"]):
            row[name] = cosine


def add_copying(
    rows: list[Row], space: str, drawn: np.ndarray, training: np.ndarray, normal: float
) -> None:
    """By how much a subject picture is nearer to a training picture than is `normal`."""
    for row, near in zip(rows, metrics.nearest(drawn, training).tolist(), strict=True):
        if row["about"] == "subject":
            row |= {f"copying/{space}": near - normal, f"copied/{space}": int(near > normal)}


def add_prompt_fidelity(rows: list[Row], drawn: np.ndarray, text: Mapping[str, np.ndarray]) -> None:
    """CLIP-T: cosine of a subject picture and its own prompt's features (`text`, by prompt)."""
    for row, features in zip(rows, drawn, strict=True):
        if row["about"] == "subject":
            row["prompt/clip"] = float(features @ text[row["prompt"]])


def add_drift(rows: list[Row], seen: Seen, base_rows: Sequence[Row], base: Seen) -> None:
    """Cosine distance of class and unrelated pictures to the base's of the same prompt and seed."""
    there = {_made_from(row): place for place, row in enumerate(base_rows)}
    for place, row in enumerate(rows):
        other = there.get(_made_from(row))
        if row["about"] == "subject" or other is None:
            continue
        for space, drawn in seen.features.items():
            cosine = drawn[place] @ base.features[space][other]
            row[f"drift/{space}"] = float(1 - cosine)


def _made_from(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["about"], row["prompt"], row["seed"]


def column_scores(rows: Sequence[Row], places: Places) -> Scores:
    """Every column's mean, or share where it says 0 or 1: metric without its kind -> score."""
    values: dict[str, list[Any]] = defaultdict(list)
    for place in places:
        for column, value in rows[place].items():
            if column != "seed" and not is_text(column):
                values[column].append(value)
    return {
        column: metrics.share(found) if isinstance(found[0], int) else metrics.mean(found)
        for column, found in values.items()
    }


def by_prompt(rows: Sequence[Row], places: Places) -> list[list[int]]:
    """The places of each prompt's pictures, of those prompts that have two or more."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place in places:
        groups[rows[place]["prompt"]].append(place)
    return [group for group in groups.values() if len(group) > 1]


def diversity_scores(rows: Sequence[Row], places: Places, seen: Seen) -> Scores:
    """ "diversity/<space>": mean pairwise distance among the pictures of one prompt."""
    groups = by_prompt(rows, places)
    return {
        f"diversity/{space}": metrics.diversity(
            [metrics.cosine_distances(drawn[group]) for group in groups]
        )
        for space, drawn in seen.features.items()
        if groups
    }


def set_scores(
    seen: Seen, places: Places, base: Seen, base_places: Places, attributes: Sequence[str]
) -> Scores:
    """Pictures against the base's as distributions: "kid/<space>", and "change/<attribute>"."""
    scores: Scores = {}
    if min(len(places), len(base_places)) > 1:
        for space, drawn in seen.features.items():
            theirs = base.features[space][base_places]
            scores[f"kid/{space}"] = metrics.kid(drawn[places], theirs)
    for attribute in attributes if places and base_places else ():
        words = _words(seen, places, attribute)
        base_words = _words(base, base_places, attribute)
        scores[f"change/{attribute}"] = metrics.total_variation(words, base_words)
    return scores


def _words(seen: Seen, places: Places, attribute: str) -> list[str]:
    readings = [seen.readings[place] for place in places]
    return [NONE if reading.none else reading.words[attribute] for reading in readings]
