"""What was measured becomes a choice: evaluation.json, metrics.csv, the export, the report."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.files import discard, read_json, remove, write_json
from ldm.checkpoint.snapshots import EVALUATIONS
from ldm.config import Evaluation
from ldm.errors import UserError, explain_disk_errors
from ldm.evaluation.gates import CHOOSING, REPORTING, Margins, margins_for
from ldm.evaluation.measured import Measured, Scores, fidelity_of, read_measured
from ldm.evaluation.pictures import ABOUT as PICTURES
from ldm.evaluation.pictures import HALVES, KINDS
from ldm.evaluation.rows import places_of
from ldm.evaluation.select import select, should_stop, verdict
from ldm.evaluation.terms import figure, first_of, full_name, term
from ldm.export import ABOUT, adapter_files, export_folder
from ldm.models.adapters import Adapter
from ldm.models.base import BaseModel
from ldm.run.export.card import card_files
from ldm.run.export.describe import describe, warn_of_whole_rank
from ldm.run.measure.evaluator import BASE, FOLDER, Evaluator, Task
from ldm.run.measure.instruments import Instruments
from ldm.sampling.metadata import versions

log = logging.getLogger(__name__)

RESULT, EXPORT, REPORTS = EVALUATIONS[0], "export", ("report.html", "report.png")
LINE = 4  # metrics in a line


def step_name(step: int) -> str:
    """As snapshots are named."""
    return f"step-{step:06d}"


def read_all(run: Path, last: int) -> tuple[Measured | None, dict[int, Measured]]:
    """The base's numbers, and those of the snapshots up to `last` that were measured as it was."""
    base = _read(run / FOLDER / BASE)
    if base is None:
        return None, {}
    found = {int(path.name[5:]): _read(path) for path in sorted((run / FOLDER).glob("step-*"))}
    return base, {
        step: measured
        for step, measured in found.items()
        if measured is not None and step <= last and _are_comparable(measured, base)
    }


def _read(folder: Path) -> Measured | None:
    try:
        return read_measured(folder)
    except UserError:
        return None


def _are_comparable(measured: Measured, base: Measured) -> bool:
    """Whether it was measured beside these very pictures of the base, with the same instruments."""
    own = ("pictures", "base", "losses")
    same = {key: value for key, value in base.about.items() if key not in own}
    beside = measured.about["base"] == base.about["pictures"]
    return beside and all(measured.about.get(key) == value for key, value in same.items())


def forget_pictures(run: Path, steps: set[int]) -> None:
    """Remove the pictures of snapshots that are gone; their numbers, which are small, stay."""
    for folder in (run / FOLDER).glob("step-*"):
        if int(folder.name[5:]) not in steps:
            for name in (*KINDS, PICTURES):
                remove(folder / name)


def write_result(
    run: Path,
    evaluator: Evaluator,
    instruments: Instruments,
    evaluation: Evaluation,
    present: set[int],
) -> dict[str, Any]:
    """Choose among the measured snapshots that are `present`; write evaluation.json, return it.

    UserError: disk not writable.
    """
    base, floor, ceiling = evaluator.base(), evaluator.floor(), evaluator.measurer.ceiling()
    _, measured = read_all(run, max(present))
    halves = {half: _half(base, measured, half) for half in HALVES}
    task, there = evaluator.task, {s: one for s, one in measured.items() if s in present}
    result = {
        "base": halves[REPORTING]["base"],
        "snapshots": halves[REPORTING]["snapshots"],
        "choosing": halves[CHOOSING],
        "reporting": {"prompts": halves[REPORTING]["prompts"]},
        **_chosen(base, there, ceiling, floor, evaluation.margins),
        "ceiling": ceiling,
        "floor": floor,
        "missing": instruments.missing,
        "oracle": dict(instruments.oracle.rates) if instruments.oracle else {},
        "references": {
            "heldout": len(task.heldout),
            "training": len(task.training),
            "compared_with": evaluator.measurer.compared_with,
        },
        **_provenance(task),
        "base_fingerprint": evaluator.fingerprint,
        "base_pictures": f"{FOLDER}/{BASE}",
    }
    with explain_disk_errors(run / RESULT):
        write_json(run / RESULT, result)
    return result


def _chosen(
    base: Measured,
    snapshots: Mapping[int, Measured],
    ceiling: Scores,
    floor: Scores,
    margins: Mapping[str, float],
) -> dict[str, Any]:
    """Which snapshot, why, and what each of them passed."""
    fidelity = fidelity_of(base.scores[CHOOSING])
    if fidelity is None:
        why = "there is nothing to compare pictures with: no oracle, no DINO, no CLIP"
        said = {"reasons": [why], "verdict": f"Nothing is chosen; {why}."}
        return {"chosen": None, **said, "gates": {}}
    choice = select(fidelity, base, snapshots, ceiling, floor, _margins(fidelity, margins))
    gates = {str(step): [asdict(gate) for gate in those] for step, those in choice.gates.items()}
    return {
        "chosen": choice.chosen,
        "reasons": choice.reasons,
        "verdict": verdict(choice, base, snapshots, ceiling),
        "gates": gates,
    }


def _margins(fidelity: str, changes: Mapping[str, float]) -> Margins:
    return margins_for(fidelity.rsplit("/", 1)[1], changes)


def why_early(run: Path, evaluation: Evaluation | None, step: int) -> str:
    """Why training ends after `step`, as what was measured up to it says; "" where it goes on.

    Read from the run's files alone, and from what is measured every so many steps alone: so it says
    the same whether or not the run was interrupted.
    """
    if evaluation is None or not evaluation.every or not evaluation.patience:
        return ""
    base, measured = read_all(run, step)
    measured = {at: one for at, one in measured.items() if at % evaluation.every == 0}
    if base is None or step not in measured:
        return ""
    fidelity = fidelity_of(base.scores[CHOOSING])
    told: dict[str, Any] = next((t for name in EVALUATIONS if (t := read_json(run / name))), {})
    if fidelity is None or "ceiling" not in told:
        return ""
    margins = _margins(fidelity, evaluation.margins)
    choice = select(fidelity, base, measured, told["ceiling"], told["floor"], margins)
    return should_stop(fidelity, measured, choice, evaluation.patience) or ""


def _provenance(task: Task) -> dict[str, Any]:
    """How the pictures were made, and of whom."""
    counts = {kind: sum(one.about == kind for one in task.asked) for kind in KINDS}
    return {
        "seed": task.seed,
        "images": counts,
        "sampling": task.sampling,
        "precision": task.precision,
        "versions": versions(),
        "subject": {
            "identifier": task.identifier,
            "class_noun": task.class_noun,
            "training": [str(path) for path in task.training],
            "heldout": [str(path) for path in task.heldout],
        },
    }


def _half(base: Measured, measured: Mapping[int, Measured], half: str) -> dict[str, Any]:
    of_half = [base.rows[place]["prompt"] for place in places_of(base.rows, "subject", half)]
    return {
        "base": base.scores[half],
        "snapshots": {str(step): one.scores[half] for step, one in measured.items()},
        "prompts": list(dict.fromkeys(of_half)),
    }


def row_of(scores: Scores) -> dict[str, float]:
    """The numbers of a step for metrics.csv, in the space that is chosen by."""
    space = (fidelity_of(scores) or "").rpartition("/")[2]
    metrics = {
        "evaluation/fidelity": [f"subject/fidelity/{space}"],
        "evaluation/prompt": ["subject/prompt/oracle", "subject/prompt/clip"],
        "evaluation/drift": [f"class/drift/{space}"],
        "evaluation/diversity": [f"subject/diversity/{space}"],
        "evaluation/identity": ["subject/identity"],
    }
    found = {
        column: next((scores[name]["value"] for name in names if name in scores), None)
        for column, names in metrics.items()
    }
    return {column: value for column, value in found.items() if value is not None}


def headline(run: Path, step: int) -> str:
    """What to look at first of a step beside the base, in a line; "" where it is not measured."""
    result = read_json(run / RESULT)
    if not isinstance(result, dict) or str(step) not in result.get("snapshots", {}):
        return ""
    base, scores = result["base"], result["snapshots"][str(step)]
    told = []
    for metric in [metric for metric in first_of(scores) if metric in base][:LINE]:
        shown = [figure(one[metric]["value"], term(metric).share) for one in (scores, base)]
        told.append(f"{full_name(metric)} {shown[0]} (base {shown[1]})")
    return f"step {step}: {', '.join(told)}"


def curves_of(scores: Scores) -> dict[str, float]:
    """Every metric's value, for the loggers."""
    return {metric: score["value"] for metric, score in scores.items()}


@dataclass(frozen=True)
class Loaded:
    """A model with a snapshot's weights, adapters' merged into it, and what they are known by."""

    model: BaseModel
    weights: str
    adapters: Mapping[str, Adapter]


def export_chosen(
    run: Path, result: Mapping[str, Any], load: Callable[[int], AbstractContextManager[Loaded]]
) -> None:
    """Write RUN/export with the chosen snapshot, and remove that of another.

    load: step -> inside, the model with its weights. UserError: disk not writable.
    """
    out, chosen = run / EXPORT, result["chosen"]
    there = read_json(out / ABOUT) or {}
    if chosen is not None:
        with load(chosen) as loaded:
            about = describe(run, loaded.model, chosen, loaded.weights, result)
            warn_of_whole_rank(about)
            if there != json.loads(json.dumps(about)):
                files = adapter_files(loaded.adapters, loaded.model.kind, about)
                files = {**files, **card_files(run, about)}
                export_folder(loaded.model, out, torch.float32, about, files)
    elif out.exists():
        with explain_disk_errors(out):
            discard(out)


def lacking(run: Path, evaluation: Evaluation | None, last: int) -> list[str]:
    """What a finished run lacks: its report, and what `evaluation` asks for.

    report.png is written at the end alone, report.html in the middle too.
    """
    missing = [name for name in REPORTS if not (run / name).exists()]
    if evaluation is None:
        return missing
    result = read_json(run / RESULT)
    if not isinstance(result, dict):
        return [RESULT]
    if evaluation.final and str(last) not in result.get("snapshots", {}):
        return [RESULT]
    chosen = result.get("chosen")
    if evaluation.export and chosen is not None:
        about = read_json(run / EXPORT / ABOUT) or {}
        missing += [EXPORT] if about.get("step") != chosen else []
    return missing
