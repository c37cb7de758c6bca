"""Going on with a run: what may have changed since, where it stands, what is out of date then."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import Config, differences, load_config
from ldm.errors import UserError
from ldm.run.folder import read_config, read_facts, write_config

if TYPE_CHECKING:
    from ldm.checkpoint import ResumePoint

log = logging.getLogger(__name__)

# What may change when a run goes on: how long it goes, what it writes, where it computes.
MAY_CHANGE = (
    "logs",
    "model.gradient_checkpointing",
    "data.cache",
    "prior.root",
    "training.steps",
    "training.save_every",
    "snapshots.",
    "sampling.",
    "samples.",
    "trainer.",
    "logger.",
    "evaluation.",
)
RESULTS = ("evaluation.json", "sheet.png")  # of the last step


def resumed_config(run: Path, files: list[Path], overrides: list[str]) -> Config:
    """A run's configuration with what is given beside `--resume` on top.

    UserError where that changes what is trained: only length, output and devices may change.
    """
    stored = read_config(run)
    config = load_config([run / "config.yaml", *files], overrides)
    wrong = {
        key: values
        for key, values in differences(stored, config).items()
        if not key.startswith(MAY_CHANGE)
    }
    if wrong:
        listed = "".join(f"\n  - {key}={now!r}, was {was!r}" for key, (was, now) in wrong.items())
        raise UserError(
            f"{run} was started with other values; leave them out, or start a new run:{listed}"
        )
    return config


def resume_point(run: Path, config: Config, facts: dict[str, Any]) -> "ResumePoint | None":
    """The resume state to go on from; None: nothing was saved yet. Nothing is written.

    UserError: another base, every resume state damaged, or more steps done than are asked for.
    """
    from ldm.checkpoint import find_resume

    check_unchanged(run, facts)
    start = find_resume(run)
    if start is not None:
        _check_steps(run, start.step, read_config(run), config)
    return start


def check_unchanged(run: Path, facts: dict[str, Any]) -> None:
    """Compare with run.json: UserError for another base; a warning for other pictures."""
    before = read_facts(run)
    if before.get("base_fingerprint") not in (None, facts["base_fingerprint"]):
        raise UserError(
            f"model.base={facts['base']}: not the weights that {run} was started with; "
            "put those back, or start a new run"
        )
    if before.get("pictures") not in (None, facts["pictures"]):
        log.warning("the pictures are not those that %s was started with", run)


def _check_steps(run: Path, done: int, stored: Config, config: Config) -> None:
    """UserError for fewer steps than are done; a warning where the learning rate will jump."""
    steps, before = config.training.steps, stored.training.steps
    if steps < done:
        raise UserError(
            f"training.steps={steps}: {run} has {done} steps behind it; give at least {done}, or "
            f"use an earlier snapshot: python scripts/sample.py --run {run} --snapshot STEP"
        )
    if done < steps != before and config.training.schedule != "constant":
        log.warning(
            "training.steps=%d, was %d: with training.schedule=%s the learning-rate curve changes "
            "from step %d on; the run is not what it would have been with %d steps from its start",
            *(steps, before, config.training.schedule, done, steps),
        )


def go_on(run: Path, config: Config, start: "ResumePoint | None") -> None:
    """Write the new config.yaml; remove the results of an earlier end if there is more to train.

    UserError: disk not writable.
    """
    from ldm.checkpoint.files import explain_disk_errors

    with explain_disk_errors(run):
        write_config(run, config)
        if start is None or start.step < config.training.steps:
            for name in RESULTS:
                (run / name).unlink(missing_ok=True)
