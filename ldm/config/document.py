"""Every key, its type, default and meaning, as Markdown.

python -m ldm.config.document > docs/configuration.md
"""

import re
import sys
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ldm.config.assign import hints_of
from ldm.config.schema import Config

FILES = ("configs/dreambooth.yaml", "configs/lora.yaml")  # later ones fill in what is not said yet
HEAD = """\
# Configuration: every key

`python -m ldm.config.document > docs/configuration.md` wrote this: the types that a configuration
is checked against, the values of `configs/dreambooth.yaml` and (`adapter`) `configs/lora.yaml`.

On the command line a key is written with dots, `training.steps=400`. `null` is none.
"""


def reference(root: Path) -> str:
    """The whole page. root: where configs/ lies."""
    told: dict[str, tuple[str, str]] = {}
    for file in FILES:
        told = {**comments((root / file).read_text("utf-8")), **told}
    plain = [key for key, kind in _types(Config) if _section(kind) is None]
    lines = [HEAD, *_table("", Config, plain, told)]
    for name, kind in _types(Config):
        if (section := _section(kind)) is not None:
            lines += ["", f"## {name}", ""]
            if said := told.get(name, ("", ""))[1] or _docstring(section):
                lines += [f"{said[0].upper()}{said[1:]}".removesuffix(".") + ".", ""]
            prefix = f"{name}."
            lines += _table(prefix, section, [key for key, _ in _types(section)], told)
    return "\n".join(lines) + "\n"


def comments(text: str) -> dict[str, tuple[str, str]]:
    """Dotted key -> (what stands there, the comment behind it), of a YAML file with two levels."""
    found, section = {}, ""
    for line in text.splitlines():
        if match := re.match(r"( *)(\w+): ?(.*?)(?:(?:^|\s+)# (.*))?$", line):
            indent, key, value, comment = match.groups()
            if not indent:
                section = key
            name = f"{section}.{key}" if indent else key
            found[name] = (value.strip(), (comment or "").strip())
    return found


def _types(kind: Any) -> list[tuple[str, Any]]:
    hints = hints_of(kind)
    return [(field.name, hints[field.name]) for field in fields(kind)]


def _section(kind: Any) -> Any:
    """The dataclass that a key's type is, or may be; else None."""
    return next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)


def _docstring(section: Any) -> str:
    """A dataclass without one has its signature there."""
    text = section.__doc__ or ""
    return "" if text.startswith(f"{section.__name__}(") else text


def _table(
    prefix: str, kind: Any, keys: list[str], told: dict[str, tuple[str, str]]
) -> Iterator[str]:
    hints = hints_of(kind)
    yield "| key | type | value there | |"
    yield "|---|---|---|---|"
    for key in keys:
        value, comment = told.get(prefix + key, ("", ""))
        cells = (f"`{prefix}{key}`", _name(hints[key]), f"`{value}`" if value else "", comment)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _name(kind: Any) -> str:
    """As a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(one) for one in inner)
    if origin is list:
        return "list" if is_dataclass(inner[0]) else f"list of {_name(inner[0])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names.get(kind, "`null`")


if __name__ == "__main__":
    sys.stdout.write(reference(Path(__file__).parents[2]))
