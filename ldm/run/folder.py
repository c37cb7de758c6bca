"""The run folder: its name, its config.yaml and run.json, and that only one process uses it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ldm.config import Config, load_config, to_yaml
from ldm.errors import UserError, explain_disk_errors

LOCK = ".lock"


def is_first_process(config: Config) -> bool:
    """Whether this is the one process that writes (global rank 0), before any group exists.

    A process that trains alone is the first, whatever rank the environment gives it: several runs
    may be started by one srun.
    """
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    alone = process_count(config) == 1
    return alone or all(os.environ.get(name, "0") == "0" for name in names)


def process_count(config: Config) -> int:
    """How many processes `trainer` asks for; on a machine with GPUs, auto and -1 mean all."""
    hardware = config.trainer
    if "," in hardware.devices:
        count = len([device for device in hardware.devices.split(",") if device])
    elif hardware.devices.isdecimal():
        count = int(hardware.devices)
    else:
        import torch

        on_gpu = hardware.accelerator in ("auto", "gpu", "cuda")
        count = max(1, torch.cuda.device_count()) if on_gpu else 1
    return count * hardware.nodes


def new_run(config: Config, now: datetime) -> Path:
    """logs/2026-01-31T10-20-30_robot, not made yet. UserError if it exists.

    A process that the first one started is told its run folder. One that torchrun or SLURM started
    computes a name from its own clock, which stands in messages alone: only the first one writes.
    """
    first = is_first_process(config)
    if not first:
        from ldm.training.ranks import RUN

        if told := os.environ.get(RUN):
            return Path(told)
    name = config.name or "-".join(config.subject.class_noun.split())
    run = Path(config.logs) / f"{now:%Y-%m-%dT%H-%M-%S}_{name}"
    if run.exists() and first:
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
    with explain_disk_errors(f"{present} ({key}={folder})"), tempfile.TemporaryFile(dir=present):
        pass


def create_run(run: Path, config: Config, facts: dict[str, Any]) -> None:
    """Make the folder with config.yaml and run.json. UserError: it exists, disk not writable."""
    from ldm.checkpoint.files import write_json

    elsewhere = "make room, or choose another folder with logs=FOLDER"
    with explain_disk_errors(f"run folder {run}", elsewhere):
        try:
            run.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"run folder {run} exists already; choose another --name") from error
        write_config(run, config)
        write_json(run / "run.json", facts)


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Inside, this run has its folder for itself; the system lets go of it when the process dies.

    For the one process of a run that writes. UserError where another run holds it.
    """
    import filelock

    lock = filelock.FileLock(run / LOCK, timeout=0)
    with explain_disk_errors(f"run folder {run}", "mend that, or start a new run"):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"another process is training in {run}; wait for its end or stop it (Ctrl-C saves),"
                " or start a run of its own with --base instead of --resume"
            ) from error
    try:
        yield
    finally:
        lock.release()


def write_config(run: Path, config: Config) -> None:
    """Write config.yaml, beside its place first, so that an interrupted write loses nothing."""
    from ldm.checkpoint.files import flush, staging

    with staging(run / "config.yaml") as staged:
        staged.write_text(
            "# The whole configuration of this run; it is repeated by\n"
            f"#     python main.py --base {(run / 'config.yaml').as_posix()}\n" + to_yaml(config),
            encoding="utf-8",
        )
        flush(staged)


def read_config(run: Path) -> Config:
    """Configuration of a run folder. UserError where there is none."""
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist; give one from logs/")
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml; give one from logs/")
    return load_config([file], [])


def read_facts(run: Path) -> dict[str, Any]:
    """The content of a run's run.json; empty where it is missing or damaged."""
    from ldm.checkpoint.files import read_json

    return read_json(run / "run.json") or {}
