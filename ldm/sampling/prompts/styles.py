"""Styles: text that is put around a prompt, by a name.

A CSV file with the columns name, prompt, negative_prompt, as A1111 writes it, or a YAML file of
name: prompt, or name: {prompt: ..., negative: ...}. Where {prompt} stands, the prompt goes;
without it the style follows after a comma.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError

PLACE = "{prompt}"


@dataclass(frozen=True)
class Style:
    prompt: str = ""
    negative: str = ""


def read_styles(path: Path) -> dict[str, Style]:
    """The styles of a file. UserError: it cannot be read, or is of another form."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--styles {path} cannot be read ({error}); give a CSV or YAML") from error
    return _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_yaml(text, path)


def _from_csv(text: str, path: Path) -> dict[str, Style]:
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not {"name", "prompt"} <= rows[0].keys():
        raise UserError(f"--styles {path}: its columns must be name, prompt, negative_prompt")
    return {
        row["name"]: Style(row["prompt"] or "", row.get("negative_prompt") or "") for row in rows
    }


def _from_yaml(text: str, path: Path) -> dict[str, Style]:
    import yaml

    wrong = UserError(
        f"--styles {path}: must hold lines of name: prompt, or of name: {{prompt: ..., "
        "negative: ...}, with quotes around text that has a colon or begins with { or ["
    )
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise wrong from error
    if not isinstance(told, Mapping):
        raise wrong
    styles = {}
    for name, value in told.items():
        parts = value if isinstance(value, Mapping) else {"prompt": value}
        texts = [parts.get("prompt") or "", parts.get("negative") or ""]
        if parts.keys() - {"prompt", "negative"} or not all(isinstance(t, str) for t in texts):
            raise wrong
        styles[str(name)] = Style(*texts)
    return styles


def style_of(styles: Mapping[str, Style], name: str) -> Style:
    """UserError naming what there is, where it is not."""
    if name not in styles:
        raise UserError(f"--style {name}: there is no such style; there are {', '.join(styles)}")
    return styles[name]


def with_style(text: str, style: str) -> str:
    """A prompt with a style's text: in the place of {prompt}, or after it.

    >>> with_style("a dog", "watercolor")
    'a dog, watercolor'
    """
    if PLACE in style:
        return style.replace(PLACE, text)
    return ", ".join(part for part in (text, style.strip()) if part)
