"""After training: numbers beside the untouched base, and what is printed."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ldm.checkpoint.files import write_json
from ldm.config import Config, instantiate
from ldm.data.images import find_pictures, load_picture
from ldm.evaluation.answers import ceiling, measure
from ldm.evaluation.metrics import Score
from ldm.models.base import BaseModel, load_base
from ldm.run.prepare import Prepared
from ldm.run.progress import counted
from ldm.run.sheet import result_sheet

log = logging.getLogger(__name__)
HELDOUT = "heldout"  # subfolder of the subject's pictures that training never sees


def evaluate(
    config: Config, run: Path, ready: Prepared, device: torch.device
) -> dict[str, Any] | None:
    """Measure the trained base beside the untouched one; print it, write it to evaluation.json.

    ready.base: holds the weights of the last step now. None where no evaluation is asked for.
    """
    if config.evaluation is None or config.evaluation.oracle is None:
        return None
    oracle = instantiate(config.evaluation.oracle)
    trained, step = ready.base.to(device), config.training.steps
    pictures = reference_pictures(config, ready)
    model = config.model
    untouched = load_base(model.base, revision=model.revision, variant=model.variant)
    untouched.to(device, trained.unet.dtype)
    result: dict[str, Any] = {
        "base": _measured(config, ready, untouched, oracle, pictures, "untouched base measured"),
        "snapshots": {
            str(step): _measured(config, ready, trained, oracle, pictures, "trained measured")
        },
        "ceiling": {"subject/similarity": ceiling(oracle.read(pictures))},
        "chosen": step,
        "reasons": ["the last step; snapshots are not compared yet"],
        "seed": config.evaluation.seed,
        "images_per_prompt": config.evaluation.images,
        "sampling": asdict(config.sampling),
    }
    write_json(run / "evaluation.json", result)
    print_table(result, Console())
    return result


def reference_pictures(config: Config, ready: Prepared) -> list[Any]:
    """Pictures of the subject to compare with: `heldout/` beside them, else those trained on."""
    heldout = Path(config.subject.pictures).expanduser() / HELDOUT
    if heldout.is_dir():
        return [load_picture(path) for path in find_pictures(heldout)]
    log.info("no %s: similarity is to the pictures trained on, and flatters", heldout)
    return [load_picture(path) for path in ready.pictures]


def _measured(
    config: Config, ready: Prepared, base: BaseModel, oracle: Any, pictures: list[Any], label: str
) -> dict[str, Score]:
    assert config.evaluation is not None
    sampling = {**asdict(config.sampling), "height": ready.resolution, "width": ready.resolution}
    with counted(label) as progress:
        return measure(
            base,
            oracle,
            config.subject.identifier,
            config.subject.class_noun,
            pictures,
            config.evaluation.images,
            config.evaluation.seed,
            sampling,
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


def write_sheet(config: Config, run: Path, ready: Prepared) -> None:
    """Write sheet.png from the first and the last sample grid, where grids were drawn."""
    before = run / "samples" / "step-000000.png"
    after = run / "samples" / f"step-{config.training.steps:06d}.png"
    if before.is_file() and after.is_file():
        sheet = result_sheet(ready.pictures, after, before, config.training.steps)
        sheet.save(run / "sheet.png")


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
