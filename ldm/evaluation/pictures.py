"""The pictures that are measured: what is asked of a model, drawn and kept as PNG files.

FOLDER/subject/000.png ..., FOLDER/class/0000.png ..., FOLDER/unrelated/000.png ... and
FOLDER/pictures.json, which says of which model they are, what was asked and how they were made.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import clear_leftovers, read_json, remove, write_json
from ldm.errors import UserError, explain_disk_errors
from ldm.evaluation.oracle import Question
from ldm.models.base import BaseModel
from ldm.models.precision import autocast
from ldm.randomness import seed_of
from ldm.sampling.generate import Progress, generate
from ldm.sampling.metadata import versions
from ldm.sampling.prior import is_whole
from ldm.training.samples import save_picture

log = logging.getLogger(__name__)

ABOUT = "pictures.json"
KINDS = {"subject": 3, "class": 4, "unrelated": 3}  # folders, and digits of the names in them
HALVES = ("choosing", "reporting")


@dataclass(frozen=True)
class Asked:
    """One picture to be made.

    about: "subject", "class" or "unrelated", as in `Question`. expected: attribute -> word that its
    prompt names. half: "choosing" or "reporting", the half it belongs to; "": both.
    """

    about: str
    prompt: str
    seed: int
    expected: dict[str, str]
    half: str = ""


def ask(
    questions: Sequence[Question], images: int, class_images: int, unrelated_images: int, seed: int
) -> list[Asked]:
    """Every picture to be made, subject first, then class, then unrelated.

    images, unrelated_images: of each prompt; class_images: of all class prompts together, dealt out
    in turn. Subject prompts at even places are of the half that is chosen on, those at odd places
    of the half that is reported; a single one is of both. A picture's seed depends on `seed`, the
    place of its prompt and its number alone, so it is the same whatever model is asked, and
    however many pictures are. Each kind draws from a range of its own: 64-bit numbers, mixed, which
    no grid's seeds (small numbers) meet.
    """
    groups = {kind: [q for q in questions if q.about == kind] for kind in KINDS}
    if strange := {question.about for question in questions} - KINDS.keys():
        raise ValueError(f"questions about {sorted(strange)}; known: {', '.join(KINDS)}")
    split = len(groups["subject"]) > 1
    asked = []
    for kind, count in (("subject", images), ("unrelated", unrelated_images)):
        for place, question in enumerate(groups[kind]):
            half = HALVES[place % 2] if kind == "subject" and split else ""
            seeds = [seed_of(seed, f"evaluation/{kind}", place, number) for number in range(count)]
            asked += [_asked(question, own, half) for own in seeds]
    of_class = _of_class(groups["class"], class_images, seed, "evaluation/class")
    return sorted([*asked, *of_class], key=lambda one: [*KINDS].index(one.about))


def ask_class_again(questions: Sequence[Question], class_images: int, seed: int) -> list[Asked]:
    """The class pictures of `ask` with other seeds: a second, independent draw.

    What two draws of one model differ by is the floor of every comparison of distributions.
    """
    groups = [question for question in questions if question.about == "class"]
    return _of_class(groups, class_images, seed, "evaluation/class again")


def _of_class(questions: list[Question], count: int, seed: int, purpose: str) -> list[Asked]:
    seeds = [seed_of(seed, purpose, index=place) for place in range(count if questions else 0)]
    return [_asked(questions[i % len(questions)], own) for i, own in enumerate(seeds)]


def _asked(question: Question, seed: int, half: str = "") -> Asked:
    return Asked(question.about, question.prompt, seed, dict(question.expected), half)


def files_of(asked: Sequence[Asked]) -> list[str]:
    """The name of each picture below its folder: "subject/000.png", ..."""
    numbers = dict.fromkeys(KINDS, 0)
    names = []
    for one in asked:
        names.append(f"{one.about}/{numbers[one.about]:0{KINDS[one.about]}d}.png")
        numbers[one.about] += 1
    return names


def read_asked(folder: Path) -> list[Asked]:
    """What the pictures in a folder were asked for. UserError: there are none, or damaged."""
    about = read_json(folder / ABOUT)
    try:
        return [Asked(**one) for one in about["asked"]]  # type: ignore[index]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{folder / ABOUT} is missing or damaged, so nobody knows what its pictures were "
            "asked for; evaluate again to draw them anew"
        ) from error


def draw(
    folder: Path,
    model: BaseModel,
    asked: Sequence[Asked],
    settings: Mapping[str, Any],
    *,
    fingerprint: str,
    name: str,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> list[Path]:
    """Make those of the pictures that are not there yet; return all, in the order of `asked`.

    settings: `generate`'s keyword arguments. fingerprint: of the weights that `model` holds, which
    are others than `model.fingerprint` says once they are trained; name: of the model, for people.
    precision: see `autocast`; the VAE keeps its own. progress(done, in all) counts those that were
    there too.

    Pictures are made in fixed batches, so an interruption changes none of them (same machine, same
    batch size; otherwise up to rounding, 1/255). A damaged one is made again with its batch. Where
    pictures of another model, another question or other settings or library versions lie, they are
    removed first. UserError: settings impossible (nothing is removed then), disk not writable.
    """
    generate(model, [], [], **settings)  # of nothing: refuses what cannot be sampled with
    report = progress or (lambda done, total: None)
    own = {"fingerprint": fingerprint, "precision": precision, "settings": _deciding(settings)}
    prepare_folder(folder, {**own, "versions": versions(), "asked": [asdict(one) for one in asked]})
    provenance = {**settings, "model": name, "fingerprint": fingerprint, "base": model.source}
    skipped = model.reading.clip_skip
    provenance |= {"precision": precision, "device": model.device.type, "clip_skip": skipped}
    paths = [folder / name for name in files_of(asked)]
    batch = settings.get("batch", 8)
    parts = [slice(start, start + batch) for start in range(0, len(asked), batch)]
    missing = [part for part in parts if not all(is_whole(path) for path in paths[part])]
    done = len(asked) - sum(len(asked[part]) for part in missing)
    for part in missing:
        prompts, seeds = [a.prompt for a in asked[part]], [a.seed for a in asked[part]]
        with autocast(model.device, precision):
            made = list(generate(model, prompts, seeds, **settings))
        for path, one, picture in zip(paths[part], asked[part], made, strict=True):
            save_picture(picture, path, {**provenance, "prompt": one.prompt, "seed": one.seed})
            done += 1
            report(done, len(asked))
    return paths


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings decides what is on a picture; 5 and 5.0 are the same."""
    numbers = {key: float(value) for key, value in settings.items() if type(value) is int}
    return {key: value for key, value in {**settings, **numbers}.items() if key != "batch"}


def prepare_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder one of these pictures, and none of others. UserError: disk not writable."""
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        if read_json(folder / ABOUT) == about:
            return
        old = [folder / kind for kind in KINDS if (folder / kind).exists()]
        if old:
            log.info("%s: pictures of another model or other settings are made anew", folder)
        for path in (folder / ABOUT, *old):  # from here on nobody takes the rest for whole
            remove(path)
        write_json(folder / ABOUT, about)
