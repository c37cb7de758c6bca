"""What a benchmark is about: subjects with their pictures, class noun and prompts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldm.errors import UserError

LIST = "prompts_and_classes.txt"
LIVE = ("cat", "dog")  # the nine live subjects of arXiv 2208.12242 are of these classes
KINDS = ("object", "live")
PAIR = r"\s*([\w.-]+)\s*,\s*([\w' -]*\w)\s*"  # subject,class


@dataclass(frozen=True)
class Subject:
    """settings: what its runs are configured with besides, dotted keys."""

    name: str
    class_noun: str
    pictures: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_overlay(subject: Subject, path: Path) -> Path:
    """Write the subject's part of the configuration as YAML, to be given after other files."""
    from ldm.study.table import write_text

    keys = {"subject.pictures": str(subject.pictures), "subject.class_noun": subject.class_noun}
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = nested({**keys, **subject.settings})
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return path


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections within sections, as YAML has them."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree


def dreambench(data: Path, names: Sequence[str] = ()) -> tuple[list[Subject], list[str]]:
    """The subjects of a local copy of google/dreambooth, and the names of those that it lacks.

    data: the folder that holds prompts_and_classes.txt and a folder of pictures per subject, or
    the one above (`dataset/` in the repository). names: only these. UserError: no such list, a name
    that is not on it or has no folder, no subject at all.
    """
    places = [place for place in (data, data / "dataset") if (place / LIST).is_file()]
    if not places:
        raise UserError(
            f"{data}: no {LIST} there nor in dataset/; give a copy of "
            "https://github.com/google/dreambooth (or its folder dataset)"
        )
    folder = places[0]
    classes, prompts = read_list(folder / LIST)
    present = [name for name in classes if (folder / name).is_dir()]
    if unknown := [name for name in names if name not in present]:
        raise UserError(
            f"{folder}: no subject {', '.join(unknown)} (a folder of pictures, on {LIST}); "
            f"there are {', '.join(present) or 'none'}"
        )
    if not present:
        raise UserError(f"{folder}: none of the {len(classes)} subjects on {LIST} has a folder")
    chosen = [_subject(name, classes[name], folder, prompts) for name in names or present]
    return chosen, [name for name in classes if name not in present]


def _subject(name: str, noun: str, folder: Path, prompts: Mapping[str, Sequence[str]]) -> Subject:
    kind = "live" if noun in LIVE else "object"
    if not prompts[kind]:
        raise UserError(f"{folder / LIST}: no {kind} prompts, which {name} ({noun}) needs")
    filled = [text.replace("{0}", "[V]").replace("{1}", noun) for text in prompts[kind]]
    return Subject(name, noun, folder / name, {"evaluation.prompts": filled})


def read_list(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read prompts_and_classes.txt -> (subject -> class noun, kind -> templates with {0} {1}).

    Kinds are "object" and "live", by the headings that stand above their prompts. UserError: not
    text, no line "subject,class", no prompts.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the file as it was") from error
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    kind = ""
    for line in lines:
        if template := re.search(r"""(['"])(.*?\{0\}.*?)\1""", line):
            if not kind:
                raise UserError(f"{path}: {line.strip()!r} stands under no heading with Prompts")
            prompts[kind].append(" ".join(template[2].split()))
        elif re.search(r"prompts\s*:?\s*$", line, re.IGNORECASE):
            kind = "live" if re.search(r"\blive\b", line, re.IGNORECASE) else "object"
        elif not kind and (pair := re.fullmatch(PAIR, line)) and pair[1] != "subject_name":
            classes[pair[1]] = pair[2]
    if not classes or not any(prompts.values()):
        raise UserError(
            f"{path}: {len(classes)} lines 'subject,class' and "
            f"{sum(map(len, prompts.values()))} prompts with {{0}} found; give the file as it was"
        )
    return classes, prompts
