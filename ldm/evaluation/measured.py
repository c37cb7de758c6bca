"""What was measured of one model: scores per half, numbers per picture; kept as two files.

FOLDER/pictures.csv holds a row per picture and FOLDER/scores.json the rest, so that reports and
comparisons need neither the model nor what measured it.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.checkpoint.files import flush, read_sealed, staging, write_sealed
from ldm.errors import UserError, explain_disk_errors
from ldm.evaluation.metrics import Score
from ldm.evaluation.oracle import Reading

SCORES, PICTURES = "scores.json", "pictures.csv"
SPACES = ("oracle", "dino", "clip")  # of features; the first that is there is chosen by
TEXTS = ("file", "about", "half", "prompt")  # columns; and those that start with ...
WORDS = ("asked/", "read/")
Scores = dict[str, Score]  # metric -> score
Row = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What oracle and extractors see in N pictures, in order.

    readings: empty without an oracle. features: space -> unit rows N x D, float64; the oracle's
    embeddings, "oracle", are among them.
    """

    readings: list[Reading]
    features: dict[str, np.ndarray]


@dataclass
class Measured:
    """Numbers about the pictures of one model.

    scores: "choosing" and "reporting" -> metric -> score. rows: a picture each, with file, about,
    half, prompt, seed, the words asked for ("asked/setting") and read ("read/setting"), whether
    they are right ("setting": 0 or 1), and every metric that a single picture has: column
    "fidelity/dino" of the rows about "subject" belongs to the metric "subject/fidelity/dino".
    about: of which pictures, with what it was measured. folder: where the pictures are. seen: None
    where it was read from files.
    """

    scores: dict[str, Scores]
    rows: list[Row]
    about: dict[str, Any]
    folder: Path
    seen: Seen | None = field(default=None, repr=False, compare=False)


def fidelity_of(scores: Mapping[str, Score]) -> str | None:
    """The metric to choose by, "subject/fidelity/<space>"; None where there is none."""
    names = [f"subject/fidelity/{space}" for space in SPACES]
    return next((name for name in names if name in scores), None)


def write_measured(measured: Measured) -> None:
    """Write both files beside the pictures. UserError: disk not writable."""
    folder, rows = measured.folder, measured.rows
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with explain_disk_errors(folder):
        (folder / SCORES).unlink(missing_ok=True)  # it vouches for the rows
        with staging(folder / PICTURES) as staged:
            with staged.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            flush(staged)
        content = {"about": measured.about, "pictures": len(rows), "scores": measured.scores}
        write_sealed(folder / SCORES, content)


def read_measured(folder: Path) -> Measured:
    """What `write_measured` wrote. UserError: it is not there, or damaged."""
    content = read_sealed(folder / SCORES)
    try:
        rows = _read_rows(folder / PICTURES)
    except (OSError, ValueError):
        rows = []
    if content is None or len(rows) != content["pictures"]:
        raise UserError(
            f"{folder}: {SCORES} or {PICTURES} is missing or damaged; "
            "evaluate again, the pictures there are measured anew"
        )
    return Measured(content["scores"], rows, content["about"], folder)


def _read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        return [
            {
                column: text if is_text(column) else json.loads(text)
                for column, text in row.items()
                if text or column in TEXTS
            }
            for row in reader
        ]


def is_text(column: str) -> bool:
    """Whether a column holds words, not numbers."""
    return column in TEXTS or column.startswith(WORDS)
