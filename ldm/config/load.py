"""Read YAML files and key=value pairs into a `Config`, and report every problem at once.

The only third-party imports are OmegaConf and PyYAML (OmegaConf's own reader), so that a mistake
in a configuration is reported within a fraction of a second.
"""

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.assign import Assigner, hints_of, without_none
from ldm.config.checks import combination_problems
from ldm.config.ranges import range_problems, value_at
from ldm.config.schema import Config
from ldm.errors import UserError

# Leaves every scalar a text. The one in C takes a tenth of the time; not every PyYAML has it.
PLAIN_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
PLACES = (
    "logs",
    "model.base",
    "model.tokenizer",
    "model.vae",
    "subject.pictures",
    "data.cache",
    "prior.folder",
    "prior.root",
    "samples.vae",
    "evaluation.root",
    "evaluation.dino",
    "evaluation.clip",
    "evaluation.lpips",
)


def load_config(files: list[Path], overrides: list[str]) -> Config:
    """Merge the schema's defaults, `files` and `overrides` (each "key.sub=value"), left to right.

    Raises UserError that lists every unknown key, wrong type, value out of range and impossible
    combination, each with the file or "command line" it comes from.
    """
    tree = OmegaConf.structured(Config)
    assigner = Assigner(tree)
    for file in files:
        _read_file(Path(file), assigner)
    for override in overrides:
        _read_override(override, assigner)
    problems = assigner.problems
    try:
        config = OmegaConf.to_object(tree)
    except (OmegaConfBaseException, ValueError):  # asking key by key takes long
        problems += _unresolved(tree)
        config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    _expand_home(config)
    problems += [*range_problems(config), *combination_problems(config)]
    if problems:
        raise UserError(_listed(problems))
    return config


def _expand_home(config: Config) -> None:
    """Put the home folder where a place begins with ~ (no shell does, after `key=`)."""
    for key in PLACES:
        section, _, name = key.rpartition(".")
        holder = value_at(config, section) if section else config
        if holder is not None and getattr(holder, name) is not None:
            setattr(holder, name, os.path.expanduser(getattr(holder, name)))
    for subject in config.subjects:
        subject.pictures = os.path.expanduser(subject.pictures)


def _unresolved(tree: DictConfig) -> Iterator[str]:
    """One line per ${...} that leads nowhere; its key gets its default, so the rest is checked."""
    for key in config_keys():
        try:
            value = OmegaConf.select(tree, key)
            if isinstance(value, ListConfig):
                OmegaConf.to_container(value, resolve=True)
        except (OmegaConfBaseException, ValueError) as error:
            yield f"{key}: {str(error).splitlines()[0]}"
            OmegaConf.update(tree, key, value_at(Config(), key))


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"configuration: {problems[0]}"
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"the configuration has {len(problems)} problems:{lines}"


def _read_file(file: Path, assigner: Assigner) -> None:
    where = str(file)
    if not file.is_file():
        there = sorted(str(path) for path in file.parent.glob("*.yaml"))
        hint = f"; there are: {', '.join(there)}" if there else ""
        assigner.problems.append(f"{where}: no such configuration file{hint}")
        return
    try:
        text = file.read_text(encoding="utf-8")
        typed = OmegaConf.to_container(OmegaConf.create(text or "{}"))
        raw = yaml.load(text, PLAIN_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        assigner.problems.append(
            f"{where}{line}: not valid YAML: {reason}; quote texts that hold [ ] : # or commas"
        )
        return
    except (UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        assigner.problems.append(f"{where}: cannot be read: {str(error).splitlines()[0]}")
        return
    assigner.assign("", typed, raw, where)


def _read_override(override: str, assigner: Assigner) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        assigner.problems.append(
            f"command line: {override!r}: expected key=value, as in training.steps=400"
        )
        return
    try:
        typed, raw = yaml.safe_load(text), yaml.load(text, PLAIN_LOADER)
    except yaml.YAMLError:
        typed = raw = text
    assigner.assign(key, typed, raw, "command line", text=text.strip())


def split_command_line(words: list[str]) -> tuple[list[Path], list[str]]:
    """Part `a.yaml b.yaml key=value ...` into files and overrides (a word with = is no file)."""
    overrides = [word for word in words if "=" in word and not os.path.isfile(word)]
    return [Path(word) for word in words if word not in overrides], overrides


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `--base` of it gives the same configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), sort_keys=False)


def config_keys(section: type = Config, prefix: str = "") -> list[str]:
    """Every key that holds a value, dotted: `training.steps`, ..."""
    keys: list[str] = []
    hints = hints_of(section)
    for item in fields(section):
        kind = without_none(hints[item.name])
        inner = isinstance(kind, type) and is_dataclass(kind)
        keys += config_keys(kind, f"{prefix}{item.name}.") if inner else [prefix + item.name]
    return keys


def flat(config: Config) -> dict[str, Any]:
    """Every dotted key with its value, of plain types that JSON keeps as they are."""
    subjects = {"subjects": [asdict(subject) for subject in config.subjects]}
    return {key: value_at(config, key) for key in config_keys()} | subjects


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two `flat` configs whose values differ, with both values."""
    return {key: (first[key], now) for key, now in second.items() if first[key] != now}


def instantiate(dotted: str, **arguments: Any) -> Any:
    """Call what `package.module:Name` names. UserError if it is absent or takes other arguments."""
    module_name, _, name = dotted.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{dotted!r} cannot be imported ({error}); it must look like package.module:Name"
        ) from error
    try:
        inspect.signature(target).bind(**arguments)
    except ValueError:
        pass  # written in C, without a signature
    except TypeError as error:
        raise UserError(f"{dotted!r} cannot be called with {sorted(arguments)}: {error}") from error
    return target(**arguments)
