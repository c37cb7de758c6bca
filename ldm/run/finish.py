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
from ldm.data.images import load_picture
from ldm.evaluation.answers import ceiling, measure
from ldm.evaluation.metrics import Score
from ldm.models.base import BaseModel, load_base
from ldm.run.build import Job
from ldm.run.prepare import Prepared
from ldm.run.progress import counted
from ldm.run.settings import grid_settings, sampling_settings
from ldm.run.sheet import result_sheet
from ldm.training import Interrupted
from ldm.training.samples import save_picture

log = logging.getLogger(__name__)


def conclude(config: Config, run: Path, ready: Prepared, job: Job) -> bool:
    """Write sheet and numbers of the last step. False where the user stopped it before its end.

    UserError: disk not writable.
    """
    step, device = job.trainer.global_step, job.trainer.strategy.root_device
    try:
        with job.interrupt.listening():
            write_sheet(config, run, ready, step)
            evaluate(config, run, ready, device, step, job.interrupt.check)
    except Interrupted:
        log.warning(
            "training is complete, its numbers are not; measure again: python main.py --resume %s",
            run,
        )
        return False
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
    trained, model, oracle = ready.base.to(device), config.model, ready.oracle
    pictures = [load_picture(path) for path in ready.heldout or ready.pictures]
    untouched = load_base(model.base, revision=model.revision, variant=model.variant)
    untouched.to(device, trained.unet.dtype)

    def measured(base: BaseModel, title: str) -> dict[str, Score]:
        with counted(title, check) as progress:
            return _measured(config, ready, base, pictures, progress)

    result: dict[str, Any] = {
        "base": measured(untouched, "untouched base measured"),
        "snapshots": {str(step): measured(trained, "trained measured")},
        "ceiling": {"subject/similarity": ceiling(oracle.read(pictures))},
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


def write_sheet(config: Config, run: Path, ready: Prepared, step: int) -> None:
    """Write sheet.png from the first sample grid and that of the last step, where grids are drawn.

    UserError: disk not writable.
    """
    before = run / "samples" / "step-000000.png"
    after = run / "samples" / f"step-{step:06d}.png"
    if before.is_file() and after.is_file():
        settings = grid_settings(config, ready.base, ready.resolution, run)
        shape = (len(config.samples.prompts), config.samples.count)
        sheet = result_sheet(ready.pictures, after, before, step, shape)
        save_picture(sheet, run / "sheet.png", {**settings, "step": step, "steps_shown": [0, step]})


def report_lines(run: Path) -> list[str]:
    """Where a finished run's results are."""
    places = {
        "look first": run / "sheet.png",
        "pictures": run / "samples",
        "numbers": run / "metrics.csv",
        "snapshots": run / "snapshots",
        "evaluation": run / "evaluation.json",
    }
    lines = [f"{name:<12}{path}" for name, path in places.items() if path.exists()]
    sample = f'python scripts/sample.py --run {run} --prompt "a drawing of [V] ..."'
    return [*lines, f"{'draw more':<12}{sample}"]
