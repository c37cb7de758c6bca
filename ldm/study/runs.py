"""One run as a process of its own: begun, gone on with or begun anew, until it is measured."""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ldm.checkpoint.files import hidden_path, put_in_place, read_json, write_json
from ldm.errors import UserError, explain_disk_errors
from ldm.run.folder import LOCK, read_facts
from ldm.run.measure.instruments import make_oracle

log = logging.getLogger(__name__)

TAIL = 20  # last lines of a failed process's log that are reported
DAMAGED = ".damaged"  # ends the hidden name of a run that cannot be gone on with
# What may differ between two runs that count as the same: where things lie and what computes.
PLACES = ("name", "logs", "subject.pictures", "data.cache", "prior.root", "evaluation.root")
HARDWARE = ("trainer.", "logger.")


@dataclass(frozen=True)
class Task:
    """A run to be had.

    name: ends the run folder's name. words: main.py's command line, `--base` and what follows it,
    without logs= and --name. config: what they amount to, every dotted key with its value. folder:
    where the run lies, with NAME.log (what it said) and NAME.json (how often it was tried).
    program: the script that is run. environment: more variables of the process.
    """

    name: str
    words: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path
    program: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a task. kept: it was complete before. seconds: of this attempt."""

    task: Task
    state: Literal["done", "kept", "failed"]
    run: Path | None = None
    seconds: float = 0.0
    tail: tuple[str, ...] = ()  # of a failure: the last lines that were said


def runs_of(folder: Path, name: str) -> list[Path]:
    """Run folders TIME_NAME in `folder`, the oldest first."""
    return sorted(path for path in folder.glob(f"2*_{name}") if path.name.partition("_")[2] == name)


def evaluation_of(run: Path) -> dict[str, Any] | None:
    """A run's evaluation.json where it is whole; else None."""
    found: Any = read_json(run / "evaluation.json")
    parts = {"base": dict, "snapshots": dict, "choosing": dict, "gates": dict, "reasons": list}
    whole = isinstance(found, dict) and "chosen" in found
    whole = whole and all(isinstance(found.get(key), kind) for key, kind in parts.items())
    return found if whole and found["snapshots"] else None


def measured_as_now(task: Task, run: Path) -> bool:
    """Whether a run's evaluation.json is whole, and of the oracle as it is now.

    An oracle that was trained again sees otherwise: its rates are others. UserError: the task's
    oracle cannot be had.
    """
    found = evaluation_of(run)
    if found is None or "oracle" not in found:
        return found is not None
    oracle = make_oracle(task.config.get("evaluation.oracle"))
    now = json.loads(json.dumps(dict(oracle.rates))) if oracle else {}
    return bool(found["oracle"] == now)


def check_same(tasks: Sequence[Task]) -> None:
    """UserError where a run that is there already was configured otherwise than its task is."""
    problems = []
    for task in tasks:
        for run in runs_of(task.folder, task.name):
            before = read_facts(run).get("config", {})
            lines = _differences(before, json.loads(json.dumps(task.config)))
            problems += [f"\n  - {run.name}: {line}" for line in lines]
    if problems:
        shown = "".join(problems[:10]) + ("\n  - ..." if len(problems) > 10 else "")
        raise UserError(
            f"{tasks[0].folder} holds runs of another configuration; give this one another name "
            f"or another --out, or remove them:{shown}"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    compared = [key for key in now if key in before and key not in PLACES]
    compared = [key for key in compared if not key.startswith(HARDWARE)]
    return [f"{k}={now[k]!r}, was {before[k]!r}" for k in compared if before[k] != now[k]]


def bring(task: Task) -> Outcome:
    """Have the run: keep it if it is complete, go on with it, or begin it (anew if damaged).

    One that was measured with another oracle than there is now is measured again, not trained.

    Never raises for what goes wrong with the run itself: that is a failed outcome. An interruption
    stops the process gently, which saves, and is passed on.
    """
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        run = _usable(task)
        if run is not None and measured_as_now(task, run):
            return Outcome(task, "kept", run)
        return _attempt(task, run)
    except (UserError, OSError) as error:
        return Outcome(task, "failed", tail=tuple(str(error).splitlines()))


def _attempt(task: Task, run: Path | None) -> Outcome:
    command = ["--base", *task.words, f"logs={task.folder}", "--name", task.name]
    if run is not None:
        command = ["--resume", str(run)]
        # Not whole, or of another oracle, or it would be kept: it is made anew from what is there.
        (run / "evaluation.json").unlink(missing_ok=True)
    begun, started = time.monotonic(), datetime.now().isoformat(timespec="seconds")
    place = task.log.stat().st_size if task.log.exists() else 0
    try:
        status = _run(task, command)
    except KeyboardInterrupt:
        _record(task, started, time.monotonic() - begun, None, ("interrupted",))
        raise
    seconds = time.monotonic() - begun
    run = run or next(reversed(runs_of(task.folder, task.name)), None)
    done = status == 0 and run is not None and evaluation_of(run) is not None
    tail = () if done else (*_said(task.log, place), _why(status))
    _record(task, started, seconds, status, tail)
    return Outcome(task, "done" if done else "failed", run, seconds, tail)


def _record(
    task: Task, started: str, seconds: float, status: int | None, tail: tuple[str, ...]
) -> None:
    """Note an attempt in the task's record; status None: it was interrupted."""
    attempt = {"started": started, "seconds": round(seconds, 1), "status": status, "tail": tail}
    record = read_json(task.record)
    attempts = record["attempts"] if isinstance(record, dict) and "attempts" in record else []
    write_json(task.record, {"name": task.name, "attempts": [*attempts, attempt]})


def _run(task: Task, command: list[str]) -> int:
    """The status of the process. It leads a session of its own: Ctrl-C reaches it through us."""
    words = [sys.executable, str(task.program), *command]
    with task.log.open("ab") as file:
        file.write(f"\n$ {shlex.join(['python', *words[1:]])}\n".encode())
        file.flush()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **task.environment},
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # once: it saves and stops
            process.wait()
            raise


def _said(path: Path, place: int) -> list[str]:
    """The last lines of a log, of what was written from byte `place` on."""
    with path.open("rb") as file:
        file.seek(place)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-TAIL:]


def _why(status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}" if status else "exit status 0, but no whole evaluation.json"


def _usable(task: Task) -> Path | None:
    """The run to keep or to go on with; damaged ones are set aside with a warning."""
    from ldm.run.resume import resume_point, resumed_config

    runs = runs_of(task.folder, task.name)
    for run in runs:
        _wait_for(run)
    if finished := [run for run in runs if measured_as_now(task, run)]:
        return finished[-1]
    for run in reversed(runs):
        try:
            if not read_facts(run):
                raise UserError("run.json is missing or damaged")
            resume_point(run, resumed_config(run, [], []))
            return run
        except UserError as error:
            aside = hidden_path(run, DAMAGED)
            log.warning("%s: set aside as %s and begun anew: %s", run, aside.name, error)
            put_in_place(run, aside)
    return None


def _wait_for(run: Path) -> None:
    """Return when no process is at work in a run, such as one that outlived who started it."""
    import filelock

    lock = filelock.FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        log.warning("%s: a process is still at work there, waiting for it", run)
        lock.acquire()
    lock.release()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does, so that running children are stopped gently."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other study works in `folder`, which is made. UserError where one does."""
    import filelock

    with explain_disk_errors(folder, "make room, or give another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"another process is at work in {folder}; wait for its end, or give another --out"
            ) from error
    try:
        yield
    finally:
        lock.release()
