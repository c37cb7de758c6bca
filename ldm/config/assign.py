"""Put values, read from YAML, into the typed tree; collect what does not fit."""

import difflib
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.schema import Config

# What other trainers call some keys.
ELSEWHERE = {
    "lr": "training.learning_rate",
    "max_steps": "training.steps",
    "max_train_steps": "training.steps",
    "batch_size": "training.batch",
    "train_batch_size": "training.batch",
    "gradient_accumulation_steps": "training.accumulate",
    "snr_gamma": "objective.min_snr_gamma",
    "reg_weight": "prior.weight",
    "instance_prompt": "subject.prompt",
    "class_prompt": "prior.prompt",
    "guidance_scale": "sampling.scale",
}
NAMES = {int: "a whole number", float: "a number", bool: "true or false"}

# Of a dataclass: name -> type; slow to find out.
hints_of: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)


@dataclass
class Assigner:
    """Assigns keys of `tree`, which has the keys of the dataclass `root`.

    `problems` holds one line per key that could not be assigned; `place` stands before each key.
    """

    tree: DictConfig
    problems: list[str] = field(default_factory=list)
    root: type = Config
    place: str = ""

    def assign(self, key: str, typed: Any, raw: Any, where: str, text: str | None = None) -> None:
        """Assign one value or, for a section, each of its keys.

        typed: the value as YAML reads it; raw: the same with every scalar left a text, since a
        prompt `no` is no boolean and a revision `1e5` no number; text: on a command line, the
        value as it was typed.
        """
        kind = self._kind_of(key, where)
        if kind is None:
            return
        section = without_none(kind)
        if is_dataclass(section):
            self._assign_section(key, kind, typed, raw, where)
            return
        if get_origin(section) is list and is_dataclass(get_args(section)[0]):
            self._assign_items(key, get_args(section)[0], typed, raw, where)
            return
        try:
            value = _value(kind, typed, raw, text)
            OmegaConf.update(self.tree, key, value, merge=False, force_add=False)
        except (ValueError, OmegaConfBaseException):
            shown = text if text is not None else typed
            wanted = _wanted(kind, shown)
            self.problems.append(f"{where}: {self.place}{key}={shown}: must be {wanted}")

    def _assign_items(self, key: str, item: type, typed: Any, raw: Any, where: str) -> None:
        """Assign a list of sections, such as `subjects`; the whole list is replaced."""
        if not isinstance(typed, list) or not all(isinstance(one, dict) for one in typed):
            known = ", ".join(hints_of(item))
            self.problems.append(
                f"{where}: {key}={typed}: must be a list of sections, [{{...}}, ...], each with "
                f"some of {known} (texts with [ ] or commas quoted)"
            )
            return
        items = []
        for number, one in enumerate(typed):
            place = f"{key}[{number}]."
            inner = Assigner(OmegaConf.structured(item), self.problems, item, place)
            inner.assign("", one, raw[number], where)
            items.append(inner.tree)
        OmegaConf.update(self.tree, key, items, merge=False)

    def _assign_section(self, key: str, kind: Any, typed: Any, raw: Any, where: str) -> None:
        if typed is None and allows_none(kind):
            OmegaConf.update(self.tree, key, None)
        elif isinstance(typed, dict):
            self._make_section(key)
            for name, value in typed.items():
                inner_raw = raw.get(name, value) if isinstance(raw, dict) else value
                inner = f"{key}.{name}" if key else str(name)
                self.assign(inner, value, inner_raw, where)
        elif not (typed is None and not key):  # an empty file changes nothing
            wanted = "null or a section of keys" if allows_none(kind) else "a section of keys"
            subject = f"{key}={typed}" if key else "the file"
            self.problems.append(f"{where}: {self.place}{subject}: must be {wanted}")

    def _make_section(self, key: str) -> None:
        """Fill an optional section that is null with its defaults, since a key of it is given."""
        if key and OmegaConf.select(self.tree, key) is None:
            section = without_none(kind_at(key, self.root))
            if is_dataclass(section):
                OmegaConf.update(self.tree, key, OmegaConf.structured(section))

    def _kind_of(self, key: str, where: str) -> Any:
        parts = key.split(".") if key else []
        for depth in range(1, len(parts) + 1):
            if kind_at(".".join(parts[:depth]), self.root) is None:
                hint = suggestion(key, self.root)
                self.problems.append(f"{where}: {self.place}{key}: unknown key{hint}")
                return None
        for depth in range(1, len(parts)):
            self._make_section(".".join(parts[:depth]))
        return kind_at(key, self.root)


def kind_at(key: str, root: type = Config) -> Any:
    """The annotated type of a dotted key; None where there is no such key."""
    kind: Any = root
    for part in key.split(".") if key else []:
        section = without_none(kind)
        if not is_dataclass(section):
            return None
        kind = hints_of(section).get(part)
    return kind


def suggestion(key: str, root: type = Config) -> str:
    """ "; did you mean ...?": the usual other name, the nearest spelling, the same name in another
    section, or else what is known at that place."""
    known = _all_keys(root)
    section, _, last = key.rpartition(".")
    beside = {o.rpartition(".")[2]: o for o in known if o.rpartition(".")[0] == section}
    near = [ELSEWHERE[last]] if root is Config and last in ELSEWHERE else []
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.85)
    near = near or [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    near = near or [other for other in known if other.rpartition(".")[2] == last]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    here = beside or {name: name for name in known if "." not in name}
    return f"; known here: {', '.join(here)}"


def _all_keys(section: Any, prefix: str = "") -> list[str]:
    keys = []
    for name, kind in hints_of(section).items():
        keys.append(prefix + name)
        inner = without_none(kind)
        if is_dataclass(inner):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def allows_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def without_none(kind: Any) -> Any:
    """`X` of `X | None`."""
    if allows_none(kind):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _value(kind: Any, typed: Any, raw: Any, text: str | None) -> Any:
    """What to store for a value of type `kind`. Raises ValueError where it does not fit."""
    if typed is None and allows_none(kind):
        return None
    wanted = without_none(kind)
    if wanted is str:
        return _text(typed, raw, text)
    if wanted == list[str]:
        return _texts(typed, raw, text)
    if get_origin(wanted) is Literal:
        if raw not in get_args(wanted):
            raise ValueError
        return raw
    if get_origin(wanted) is dict:
        if not isinstance(typed, dict):
            raise ValueError
        return {str(name): _number(value) for name, value in typed.items()}
    return typed


def _number(value: Any) -> Any:
    """YAML reads 1e-6, without a dot, as a text; here it is meant as a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(typed: Any, raw: Any, text: str | None) -> str:
    if typed is None and text != "":
        raise ValueError
    if text is not None:  # as typed, unless it is quoted: `a #1 [V] dog: red` is one text
        quoted = text[:1] in "\"'" and isinstance(typed, str)
        return typed if quoted else text
    if not isinstance(raw, str):
        raise ValueError
    return raw


def _texts(typed: Any, raw: Any, text: str | None) -> list[str]:
    """A list of texts; a single text is a list of one."""
    if isinstance(typed, list) and text != "[V]":
        if not isinstance(raw, list) or len(raw) != len(typed):
            raw = typed
        return [_text(one, str(other), None) for one, other in zip(typed, raw, strict=True)]
    if text is not None and text.startswith(("['", '["')):
        raise ValueError  # meant as a list, with a quotation mark or bracket missing
    return [_text(typed, raw, text)]


def _wanted(kind: Any, shown: Any) -> str:
    plain = without_none(kind)
    if get_origin(plain) is Literal:
        near = difflib.get_close_matches(str(shown), get_args(plain), n=1)
        wanted = f"one of {', '.join(get_args(plain))}"
        wanted += f" (did you mean {near[0]}?)" if near else ""
    elif plain == list[str]:
        wanted = "a text or a list of texts, each quoted: ['a [V] dog', 'a [V] cat']"
    elif get_origin(plain) is list:
        wanted = "a list of numbers, as in [0.9, 0.999]"
    elif get_origin(plain) is dict:
        wanted = "names and values: {eps: 1.0e-6}"
    elif plain is str:
        wanted = "a text" + (
            "" if allows_none(kind) else ", not null (a text null is quoted twice)"
        )
    else:
        wanted = NAMES.get(plain, str(plain))
    return f"{wanted}, or null" if allows_none(kind) else wanted
