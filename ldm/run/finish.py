"""After training: numbers beside the untouched base, and what is printed."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from ldm.checkpoint.files import explain_disk_errors, write_json
from ldm.config import Config
from ldm.errors import UserError
from ldm.evaluation.answers import ceiling, measure
from ldm.evaluation.metrics import Score
from ldm.models.base import BaseModel, load_base
from ldm.run.job import Job
from ldm.run.prepare import Prepared
from ldm.run.progress import counted
from ldm.run.settings import as_trained, grid_settings, sampling_settings
from ldm.run.sheet import readable, result_sheet
from ldm.run.trouble import out_of_memory_message
from ldm.sampling.metadata import read_settings
from ldm.training import Interrupted
from ldm.training.samples import save_picture

log = logging.getLogger(__name__)

SHEET = "sheet.png"
COMPARED = ("prompts", "seeds", "negative", "steps", "sampler", "scale", "rescale", "width")


def conclude(config: Config, run: Path, ready: Prepared, job: Job) -> bool:
    """Write sheet and numbers of the last step. False where the user stopped it before its end.

    Nothing here can cost the run, which is saved. A sheet that cannot be made is warned of.
    UserError where the numbers could not be had for a reason that the user can mend; any other
    error says, too, how to measure again.
    """
    step, device = job.trainer.global_step, job.trainer.strategy.root_device
    again = (
        "training is complete and saved, its numbers are not there; "
        f"measure again: python main.py --resume {run}"
    )
    try:
        with job.interrupt.listening():
            try_sheet(config, run, ready, step)
            evaluate(config, run, ready, device, step, job.interrupt.check)
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


def evaluate(
    config: Config,
    run: Path,
    ready: Prepared,
    device: torch.device,
    step: int,
    check: Callable[[], None],
) -> dict[str, Any] | None:
    """Measure the trained base beside the untouched one; print it, write it to evaluation.json.

    ready.base: holds the weights of `step` now. None where no evaluation is asked for. `check` is
    called now and then; what it raises ends the measurement.
    """
    if config.evaluation is None or ready.oracle is None:
        return None
    check()
    trained, model, oracle = as_trained(config, ready.base.to(device)), config.model, ready.oracle
    pictures = readable(ready.heldout or ready.pictures)
    untouched = load_base(model.base, revision=model.revision, variant=model.variant)
    untouched.to(device, trained.unet.dtype)

    def measured(base: BaseModel, title: str) -> dict[str, Score]:
        with counted(title, check) as progress:
            return _measured(config, ready, base, pictures, progress)

    result: dict[str, Any] = {
        "base": measured(untouched, "untouched base measured"),
        "snapshots": {str(step): measured(trained, "trained measured")},
        "ceiling": {"subject/similarity": ceiling(oracle.read(pictures))}
        if len(pictures) > 1
        else {},
        "chosen": step,
        "reasons": ["the last step; snapshots are not compared yet"],
        "seed": config.evaluation.seed,
        "images_per_prompt": config.evaluation.images,
        "sampling": sampling_settings(config, ready.resolution),
    }
    with explain_disk_errors(run / "evaluation.json"):
        write_json(run / "evaluation.json", result)
    print_table(result, Console())
    return result


def _measured(
    config: Config,
    ready: Prepared,
    base: BaseModel,
    pictures: list[Image.Image],
    progress: Callable[[int, int], None],
) -> dict[str, Score]:
    assert config.evaluation is not None
    return measure(
        base,
        ready.oracle,
        config.subject.identifier,
        config.subject.class_noun,
        pictures,
        config.evaluation.images,
        config.evaluation.seed,
        sampling_settings(config, ready.resolution),
        progress,
    )


def print_table(result: dict[str, Any], console: Console) -> None:
    """The metrics of the base and of each snapshot side by side, with 95 % intervals."""
    columns = {"untouched base": result["base"]}
    columns |= {f"step {step}": scores for step, scores in result["snapshots"].items()}
    table = Table(title="what it draws, read by the oracle", title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in result["base"]:
        table.add_row(metric, *(_cell(metric, scores[metric]) for scores in columns.values()))
    console.print(table)


def _cell(metric: str, score: Score) -> str:
    if metric.endswith(("similarity", "diversity")):
        return f"{score['value']:.2f} ({score['low']:.2f}-{score['high']:.2f})"
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['value']:.0f} % ({low:.0f}-{high:.0f}, n {score['n']})"


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
    }
    lines = [f"{name:<12}{path}" for name, path in places.items() if path.exists()]
    sample = f'python scripts/sample.py --run {run} --prompt "a drawing of [V] ..."'
    return [*lines, f"{'draw more':<12}{sample}"]
