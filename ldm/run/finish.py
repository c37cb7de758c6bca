"""After training: numbers beside the untouched base, and what is printed."""

import logging
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ldm.config import Config
from ldm.errors import UserError
from ldm.evaluation.metrics import Score
from ldm.evaluation.terms import figure, in_order, interval, term
from ldm.run.job import Job
from ldm.run.live.loggers import log_end
from ldm.run.measure.one_run import write_report_or_warn
from ldm.run.prepare import Prepared
from ldm.run.settings import grid_settings
from ldm.run.sheet import result_sheet
from ldm.run.trouble import out_of_memory_message
from ldm.sampling.metadata import read_settings
from ldm.training import Interrupted
from ldm.training.evaluation import log_numbers
from ldm.training.samples import save_picture

log = logging.getLogger(__name__)

SHEET = "sheet.png"
IMPORTANT = (  # beginnings of the metrics that are printed; report.html has them all
    "subject/identity",
    "subject/fidelity",
    "subject/prompt",
    "subject/diversity",
    "class/identity",
    "class/pres",
    "class/class",
    "class/drift",
    "class/change",
    "unrelated/drift",
)
COMPARED = (
    "prompts",
    "seeds",
    "negative",
    "steps",
    "sampler",
    "scale",
    "rescale",
    "guidance_interval",
    "width",
    "vae",
)


def conclude(config: Config, run: Path, ready: Prepared, job: Job) -> bool:
    """Sheet, numbers, choice, export and report. False where the user stopped it before its end.

    Nothing here can cost the run, which is saved: no weight or random state of it is used again.
    A sheet or report that cannot be made is warned of. UserError where the numbers could not be had
    for a reason that the user can mend; any other error says, too, how to measure again.
    """
    step, device = job.trainer.global_step, job.trainer.strategy.root_device
    again = (
        "training is complete and saved, its numbers are not there; "
        f"measure again: python main.py --resume {run}"
    )
    try:
        with job.interrupt.listening():
            try_sheet(config, run, ready, step)
            result: dict[str, Any] = {}
            if job.measuring is not None:
                job.interrupt.check()
                result, numbers = job.measuring.at_the_end(device, step)
                log_numbers(job.trainer, numbers)
            job.live.over = write_report_or_warn(run)
            job.live.concluded = True
            try_loggers(config, run, job, result)
            if result:
                print_result(result, step, Console())
    except Interrupted:
        log.warning("%s", again)
        return False
    except torch.OutOfMemoryError as error:
        raise UserError(f"{out_of_memory_message(config, ready, error)}\n{again}") from error
    except UserError as error:
        raise UserError(f"{error}\n{again}") from error
    except Exception as error:
        error.add_note(again)
        raise
    return True


def try_loggers(config: Config, run: Path, job: Job, result: dict[str, Any]) -> None:
    """Tell the loggers what came of the run; a failure is no more than a warning."""
    try:
        log_end(config, run, job.trainer, result, job.live.progress.metrics.latest)
    except Exception as error:
        log.warning("not all that came of %s was logged: %s: %s", run, type(error).__name__, error)


def print_result(result: dict[str, Any], last: int, console: Console) -> None:
    """The metrics that matter of the base, the chosen and the last snapshot, and the verdict."""
    columns = {"untouched base": result["base"]}
    shown = [step for step in (result["chosen"], last) if step is not None]
    for step in dict.fromkeys(shown):
        if scores := result["snapshots"].get(str(step)):
            name = f"step {step}" + (" (chosen)" if step == result["chosen"] else "")
            columns[name] = scores
    table = Table(title="what it draws", title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    found = {metric for scores in columns.values() for metric in scores}
    for metric in [one for one in in_order(found) if one.startswith(IMPORTANT)]:
        about = term(metric)
        cells = (_cell(scores.get(metric), about.share) for scores in columns.values())
        table.add_row(f"{about.group}: {about.name}", *cells)
    console.print(table)
    console.print(result["verdict"], soft_wrap=True, highlight=False, markup=False)
    for name, reason in result["missing"].items():
        console.print(f"not measured with {name}: {reason}", soft_wrap=True, markup=False)


def _cell(score: Score | None, share: bool) -> str:
    if score is None:
        return ""
    value, span = figure(score["value"], share), interval(score["low"], score["high"], share)
    return f"{value} ({span})"


def try_sheet(config: Config, run: Path, ready: Prepared, step: int) -> None:
    """As `write_sheet`, but a failure is no more than a warning."""
    try:
        write_sheet(config, run, ready, step)
    except Exception as error:
        log.warning("no %s: %s", run / SHEET, error)


def write_sheet(config: Config, run: Path, ready: Prepared, step: int) -> None:
    """Write sheet.png from the first sample grid and that of the last step, where grids are drawn.

    Grids drawn with other prompts, seeds or settings (they may change when a run goes on) are not
    put side by side: the last one then stands alone. UserError: disk not writable.
    """
    before = run / "samples" / "step-000000.png"
    after = run / "samples" / f"step-{step:06d}.png"
    if not (before.is_file() and after.is_file()):
        return
    drawn = {path: read_settings(path) for path in (before, after)}
    alike = all(drawn[before].get(key) == drawn[after].get(key) for key in COMPARED)
    if not alike:
        log.warning("%s: without the untouched base, whose grid has other settings", run / SHEET)
    settings = grid_settings(config, ready.base, ready.resolution, run)
    shape = (len(config.samples.prompts), config.samples.count)
    sheet = result_sheet(ready.pictures, after, before if alike else None, step, shape)
    shown = [0, step] if alike else [step]
    save_picture(sheet, run / SHEET, {**settings, "step": step, "steps_shown": shown})


def report_lines(run: Path) -> list[str]:
    """Where a finished run's results are."""
    places = {
        "look first": run / SHEET,
        "pictures": run / "samples",
        "numbers": run / "metrics.csv",
        "snapshots": run / "snapshots",
        "evaluation": run / "evaluation.json",
        "report": run / "report.html",
        "export": run / "export",
    }
    lines = [f"{name:<12}{path}" for name, path in places.items() if path.exists()]
    sample = f'python scripts/sample.py --run {run} --prompt "a drawing of [V] ..."'
    return [*lines, f"{'draw more':<12}{sample}"]
