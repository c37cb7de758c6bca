"""A picture of a benchmark: a row per subject, from the pictures that were measured."""

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from ldm.data.images import find_pictures, load_picture
from ldm.errors import UserError
from ldm.evaluation.pictures import Asked, files_of, read_asked
from ldm.run.folder import read_facts
from ldm.sampling.grid import labelled_grid
from ldm.study.collect import Row

log = logging.getLogger(__name__)

SIDE = 128  # pixels of a picture on the sheet
PROMPTS = 6  # of a subject
CLASSES = 2  # pictures of the class prompt


def write_sheet(rows: Sequence[Row], path: Path) -> None:
    """Training picture, some prompts of the subject and the class prompt, a row per run.

    A run whose pictures are gone is left out with a warning; without any there is no file.
    """
    lines, labels = [], []
    heads: list[list[str]] = []  # of each line
    left_out: dict[str, str] = {}
    several = len({row.method for row in rows}) > 1
    for row in rows:
        try:
            pictures, above = _line(row)
        except (UserError, OSError, IndexError) as error:
            left_out[f"{row.method}, {row.subject}"] = str(error)
            continue
        lines.append(pictures)
        heads.append(above)
        labels.append(f"{row.method}: {row.subject}" if several else row.subject)
    if left_out:
        names, why = "; ".join(left_out), next(iter(left_out.values()))
        log.warning("left out of %s: %s (the first: %s)", path, names, why)
    if lines:
        columns = [" | ".join(dict.fromkeys(texts)) for texts in zip(*heads, strict=False)]
        labelled_grid(lines, labels, columns, tile=SIDE).save(path)


def _line(row: Row) -> tuple[list[Image.Image], list[str]]:
    """A run's pictures for the sheet, and what stands above them."""
    facts = read_facts(row.run)
    training = find_pictures(Path(facts["config"]["subject.pictures"]))[0]
    folder = row.run / "evaluation" / f"step-{row.step:06d}"
    asked = read_asked(folder)
    chosen = _chosen(asked)
    files = files_of(asked)
    heads = [
        asked[place].prompt.replace(facts["identifier"], "[V]").replace(row.class_noun, "...")
        for place in chosen
    ]
    paths = [training, *(folder / files[place] for place in chosen)]
    return [_small(load_picture(file)) for file in paths], ["a training picture", *heads]


def _chosen(asked: Sequence[Asked]) -> list[int]:
    """The first picture of PROMPTS prompts spread over the subject's, and CLASSES of the class."""
    first: dict[str, int] = {}
    for place, one in enumerate(asked):
        if one.about == "subject":
            first.setdefault(one.prompt, place)
    places = list(first.values())
    count = min(PROMPTS, len(places))
    of_class = [place for place, one in enumerate(asked) if one.about == "class"]
    return [places[i * len(places) // count] for i in range(count)] + of_class[:CLASSES]


def _small(picture: Image.Image) -> Image.Image:
    """The whole picture in a square; small ones are enlarged without smoothing."""
    smaller = max(picture.size) <= SIDE
    method = Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
    return ImageOps.pad(picture.convert("RGB"), (SIDE, SIDE), method, color="white")
