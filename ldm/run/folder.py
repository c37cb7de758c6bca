"""The run folder: its name, its config.yaml and run.json."""

import os
import platform
import shlex
import sys
import tempfile
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ldm.config import Config, load_config, to_yaml
from ldm.errors import UserError

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
)


def is_first_process() -> bool:
    """Whether this is the one process that writes (global rank 0), before any group exists."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def new_run(config: Config, now: datetime) -> Path:
    """logs/2026-01-31T10-20-30_robot, not made yet. UserError if it exists."""
    name = config.name or "-".join(config.subject.class_noun.split())
    run = Path(config.logs) / f"{now:%Y-%m-%dT%H-%M-%S}_{name}"
    if run.exists() and is_first_process():
        raise UserError(
            f"run folder {run} exists already; go on with it by --resume {run}, "
            "or choose another --name"
        )
    return run


def existing_parent(folder: Path) -> Path:
    """`folder`, or the first of its parents that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path, key: str) -> None:
    """Raise UserError, naming `key`, unless files can be made in `folder` or where it will be."""
    present = existing_parent(folder)
    try:
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={folder}: {present} cannot be written ({error.strerror}); "
            "make room there, or choose another folder"
        ) from error


def create_run(run: Path, config: Config, facts: dict[str, Any]) -> None:
    """Make the folder with config.yaml and run.json. UserError: it exists, disk not writable."""
    from ldm.checkpoint.files import write_json

    try:
        run.mkdir(parents=True)
        write_config(run, config)
        write_json(run / "run.json", facts)
    except FileExistsError as error:
        raise UserError(f"run folder {run} exists already; choose another --name") from error
    except OSError as error:
        raise UserError(
            f"run folder {run} cannot be written ({error.strerror}); make room, or choose "
            "another folder with logs=FOLDER"
        ) from error


def write_config(run: Path, config: Config) -> None:
    """Write config.yaml, beside its place first, so that an interrupted write loses nothing."""
    staged = run / ".config.yaml.staging"
    staged.write_text(
        "# The whole configuration of this run; it is repeated by\n"
        f"#     python main.py --base {(run / 'config.yaml').as_posix()}\n" + to_yaml(config),
        encoding="utf-8",
    )
    staged.replace(run / "config.yaml")


def run_facts(config: Config, source: str, fingerprint: str, pictures: dict[str, str]) -> dict:
    """The content of run.json; `pictures` are name -> sha256."""
    return {
        "base": source,
        "base_fingerprint": fingerprint,
        "pictures": pictures,
        "identifier": config.subject.identifier,
        "class_noun": config.subject.class_noun,
        "seed": config.seed,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "command": shlex.join(["python", *sys.argv]),
    }


def read_config(run: Path) -> Config:
    """Configuration of a run folder. UserError where there is none."""
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist; give one from logs/")
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml")
    return load_config([file], [])


def read_facts(run: Path) -> dict[str, Any]:
    """The content of a run's run.json; empty where it is missing or damaged."""
    from ldm.checkpoint.files import read_json

    return read_json(run / "run.json") or {}
