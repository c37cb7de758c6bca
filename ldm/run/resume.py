"""Going on with a run: what may have changed since, where it stands, what is out of date then."""

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import Config, differences, flat, load_config
from ldm.errors import UserError, explain_disk_errors
from ldm.run.folder import is_first_process, read_config, read_facts, write_config

if TYPE_CHECKING:
    from ldm.checkpoint import ResumePoint

log = logging.getLogger(__name__)

# What may change when a run goes on: how long it goes, what it writes, where things lie and where
# it computes. With what is to be said of it. (Pictures are compared by their content.)
ROUNDING = "the samples are the same; the results agree but for rounding"
MAY_CHANGE = {
    "logs": "",
    "model.gradient_checkpointing": ROUNDING,
    "subject.pictures": "",
    "data.cache": "",
    "prior.folder": "",
    "prior.root": "",
    "prior.sampling_batch": "class images still to be made agree but for rounding",
    "training.steps": "",
    "training.accumulate": ROUNDING,
    "training.fused_backward": "",
    "training.compile": ROUNDING,
    "training.save_every": "",
    "snapshots.": "",
    "sampling.": "",
    "samples.": "",
    "trainer.": ROUNDING,
    "logger.": "",
    "profile": "",
    "evaluation": "",
}
RESULTS = ("evaluation.json", "sheet.png", "report.html", "report.png")  # of the last step


def resumed_config(run: Path, files: list[Path], overrides: list[str]) -> Config:
    """A run's configuration with what is given beside `--resume` on top; what differs is said.

    UserError where that changes what was trained: only length, output and devices may change.
    """
    stored, config = flat(read_config(run)), load_config([run / "config.yaml", *files], overrides)
    started = {**stored, **read_facts(run).get("config", {})}  # also where the file was edited
    now = flat(config)
    changed = differences(started, now)
    if "subjects" in changed and _without_places(started) == _without_places(now):
        del changed["subjects"]
    lines = {key: f"\n  - {key}={now!r}, was {was!r}" for key, (was, now) in changed.items()}
    notes = {key: _note(key, *pair) for key, pair in changed.items()}
    wrong = "".join(line for key, line in lines.items() if notes[key] is None)
    allowed = "".join(
        line + (f" ({notes[key]})" if notes[key] else "")
        for key, line in lines.items()
        if notes[key] is not None
    )
    if wrong:
        edited = differences(started, stored).keys() & changed.keys()
        remedy = f"put them back into {run / 'config.yaml'}" if edited else "leave them out"
        also = f"\nthese may change:{allowed}" if allowed else ""
        raise UserError(
            f"{run} was started with other values; {remedy}, or start a new run:{wrong}{also}"
        )
    if allowed and is_first_process(config):
        log.info("%s goes on with other values than before:%s", run, allowed)
    return config


def _note(key: str, was: Any, now: Any) -> str | None:
    """What is to be said of a change; None where it must not be."""
    if key == "prior.folder" and None in (was, now):
        return None
    return next((note for start, note in MAY_CHANGE.items() if key.startswith(start)), None)


def _without_places(config: dict[str, Any]) -> list[Any]:
    return [{**subject, "pictures": ""} for subject in config["subjects"]]


def resume_point(run: Path, config: Config) -> "ResumePoint | None":
    """The resume state to go on from; None: nothing was saved yet. Nothing is written.

    UserError: every resume state damaged, or more steps done than are asked for.
    """
    from ldm.checkpoint import find_resume

    start = find_resume(run)
    if start is not None:
        _check_steps(run, start.step, read_config(run), config)
    return start


def check_unchanged(run: Path, facts: dict[str, Any]) -> None:
    """Compare with run.json: UserError, naming all of it, for another base or other pictures."""
    before, problems = read_facts(run), []
    if not before:
        log.warning("%s: missing or damaged; base and pictures are not compared", run / "run.json")
    if before.get("precision") not in (None, facts["precision"]):
        log.warning(
            "%s was computed in %s, on this device training.precision=auto is %s: results agree "
            "but for rounding; go on where it began to have them bit for bit",
            *(run, before["precision"], facts["precision"]),
        )
    if before.get("base_fingerprint") not in (None, facts["base_fingerprint"]):
        problems.append(f"model.base={facts['base']}: its weights are others")
    for kind in ("pictures", "prompts", "masks", "class_pictures"):
        if kind in before:
            problems += _changes(kind.replace("_", " "), before[kind], facts[kind])
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(
            f"{run} was started with other inputs; put those back, or start a new run:{listed}"
        )


def _changes(kind: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each way in which two dictionaries differ, naming the keys."""
    found = {
        "gone": before.keys() - now.keys(),
        "new": now.keys() - before.keys(),
        "changed": {name for name in before.keys() & now.keys() if before[name] != now[name]},
    }
    return [f"{kind} {how}: {', '.join(sorted(names))}" for how, names in found.items() if names]


def _check_steps(run: Path, done: int, stored: Config, config: Config) -> None:
    """UserError for fewer steps than are done; a warning where the past would have been another."""
    steps, before = config.training.steps, stored.training.steps
    if steps < done:
        raise UserError(
            f"training.steps={steps}: {run} has {done} steps behind it; give at least {done}, or "
            f"use an earlier snapshot: python scripts/sample.py --run {run} --snapshot STEP"
        )
    following = _following_the_length(config)
    if done < steps != before and following:
        log.warning(
            "training.steps=%d, was %d: the curves of %s change from step %d on; "
            "the run is not what it would have been with %d steps from its start",
            *(steps, before, ", ".join(following), done, steps),
        )


def _following_the_length(config: Config) -> list[str]:
    """The settings in use that are stretched over all steps."""
    training, prior = config.training, config.prior
    used = {
        f"training.schedule={training.schedule}": training.schedule != "constant",
        "prior.weight_end": prior is not None and prior.weight_end is not None,
    }
    return [name for name, is_used in used.items() if is_used]


def end_of(run: Path, config: Config, start: "ResumePoint | None") -> int:
    """The run's last step: `training.steps`, or the one after which its evaluations ended it."""
    if start is not None and config.evaluation and config.evaluation.patience:
        from ldm.run.measure.results import why_early

        if why_early(run, config.evaluation, start.step):
            return start.step
    return config.training.steps


def finished_lines(run: Path, config: Config, start: "ResumePoint | None") -> list[str]:
    """What to say of a run with nothing left to train, measure or show; empty where there is."""
    from ldm.checkpoint import has_snapshot

    last, steps = end_of(run, config, start), config.training.steps
    if start is None or start.step < last or not has_snapshot(run / "snapshots", last):
        return []
    from ldm.run.measure.results import lacking, why_early

    grids = [run / "samples" / f"step-{step:06d}.png" for step in (0, last)]
    sheet = all(grid.exists() for grid in grids) and not (run / "sheet.png").exists()
    if sheet or lacking(run, config.evaluation, last):
        return []
    if last < steps:
        return [
            f"{run} ended early, after step {last} of {steps}: "
            f"{why_early(run, config.evaluation, last)}",
            f"to go on: python main.py --resume {run} evaluation.patience=null",
        ]
    return [
        f"{run} is finished: all of its {steps} steps are done, nothing is left to train",
        f"to go on: python main.py --resume {run} training.steps=N, with N above {steps}",
    ]


def go_on(run: Path, config: Config, facts: dict[str, Any], start: "ResumePoint | None") -> None:
    """Tidy up after the process before, write the new config.yaml, say what is repeated.

    Results of an earlier end go if there is more to train; its numbers stay beside the new ones.
    Those that were measured on the way stay what they are.
    For the process that writes, once it has the folder for itself. UserError: disk not writable.
    """
    from ldm.checkpoint import clear_leftovers, set_aside
    from ldm.checkpoint.files import put_in_place, write_json
    from ldm.checkpoint.snapshots import EVALUATIONS

    before = read_config(run)
    ended = start is None or start.step >= end_of(run, before, start)
    last = end_of(run, config, start)
    with explain_disk_errors(run):
        clear_leftovers(run)
        for damaged in start.damaged if start else []:
            set_aside(damaged)
        write_config(run, config)
        if start is not None:  # what the first start was with; config.yaml was that of the last
            stored = {"steps": before.training.steps, **read_facts(run)}
            facts = {**facts, **stored, "config": facts["config"]}
        write_json(run / "run.json", facts)
        if start is None or start.step < last:
            if ended and (run / EVALUATIONS[0]).exists():  # the snapshot that it chose stays
                put_in_place(run / EVALUATIONS[0], run / EVALUATIONS[1])
            for name in RESULTS if ended else ():
                (run / name).unlink(missing_ok=True)
            _tell_the_place(run, start, config.training.steps, before.training.save_every)


def _tell_the_place(run: Path, start: "ResumePoint | None", steps: int, every: int) -> None:
    done = start.step if start else 0
    lost = max(0, last_step(run) - done)
    again = f"; steps done after it that were lost and are repeated: {lost}" if lost else ""
    if 0 < lost <= every:
        again += f" (at most training.save_every={every})"
    if start is None:
        log.info("nothing was saved yet: starting at step 0 of %d%s", steps, again)
    else:
        log.info("going on after step %d of %d%s", done, steps, again)


def last_step(run: Path) -> int:
    """The last optimizer step of which metrics.csv has a row; 0 where there is none."""
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8", errors="replace") as file:
            steps = [row[0] for row in csv.reader(file) if row]
    except (OSError, csv.Error):
        return 0
    return max((int(step) for step in steps if step.isdecimal()), default=0)
