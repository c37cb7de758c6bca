"""What a sweep found: a table of trials, a picture of what mattered, the winner as an overlay."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import explain_disk_errors
from ldm.study.space import Range, Space, overrides
from ldm.study.subjects import nested
from ldm.study.sweep import ABANDONED, GATES
from ldm.study.table import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

WINNER, TABLE, PICTURE = "winner.yaml", "trials.csv", "sweep.png"
ENOUGH = 4  # trials that importances need


def write_findings(study: "Study", space: Space, out: Path, command: str, fixed: str) -> str:
    """Write trials.csv, sweep.png and, where a trial passed the gates, winner.yaml; one sentence.

    command: of the sweep; fixed: the rest of the command line that the winner is used with. Both
    stand in winner.yaml's head. UserError: disk not writable.
    """
    abandoned = study.user_attrs.get(ABANDONED, [])
    trials = [trial for trial in study.get_trials() if trial.number not in abandoned]
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    passed = [trial for trial in done if trial.constraints.get(GATES, 1) <= 0]
    best = max(passed, key=lambda trial: trial.value or 0.0, default=None)
    with explain_disk_errors(out):
        write_text(out / TABLE, _csv(trials, space))
        if done:
            _picture(study, space, done).savefig(out / PICTURE, dpi=110)
        if best is not None:
            write_text(out / WINNER, _overlay(best, len(done), out, command, fixed))
    if best is not None:
        return f"best: trial {best.number}, fidelity {best.value:.4f}: " + " ".join(
            overrides(best.params)
        )
    if not done:
        return "no trial was completed"
    near = max(done, key=lambda trial: trial.value or 0.0)
    return (
        f"no trial passed the gates on every subject; the nearest is trial {near.number}: "
        + " ".join(overrides(near.params))
    )


def _overlay(best: "FrozenTrial", trials: int, out: Path, command: str, fixed: str) -> str:
    import yaml

    subjects = ", ".join(f"{name} {value:.3f}" for name, value in best.user_attrs.items())
    head = [
        f"Overlay: the best of {trials} trials of a sweep, trial {best.number}:",
        f"fidelity {best.value:.4f} within the gates, on the choosing half of the prompts",
        f"({subjects}). Found by",
        f"    {command}",
        "and used with",
        f"    python main.py --base {fixed} {(out / WINNER).as_posix()}",
    ]
    lines = "".join(f"# {line}\n" for line in head)
    return lines + "\n" + yaml.safe_dump(nested(best.params), sort_keys=False)


def _csv(trials: Sequence["FrozenTrial"], space: Mapping[str, Any]) -> str:
    """A line per trial; the columns that start with "subject " are its values."""
    subjects = list(dict.fromkeys(k for t in trials for k in t.user_attrs if k != "failed"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"subject {name}" for name in subjects]
    writer.writerow(["trial", "state", "value", "violation", "seconds", *space, *named, "failed"])
    for trial in trials:
        seconds = trial.duration.total_seconds() if trial.duration else ""
        values = [trial.value, trial.constraints.get(GATES), seconds]
        values += [trial.params.get(key) for key in space]
        values += [trial.user_attrs.get(name) for name in [*subjects, "failed"]]
        row = ["" if value is None else value for value in values]
        writer.writerow([trial.number, trial.state.name.lower(), *row])
    return text.getvalue()


def _picture(study: "Study", space: Space, done: Sequence["FrozenTrial"]) -> "Figure":
    """What mattered: importances on the left, each key's values against the objective."""
    from matplotlib.figure import Figure

    columns = min(3, len(space) + 1)
    rows = -(-(len(space) + 1) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    _importances(axes[0], study, space, len(done))
    for ax, (key, part) in zip(axes[1:], space.items(), strict=False):
        _slice(ax, key, part, done)
    for ax in axes[len(space) + 1 :]:
        ax.set_axis_off()
    figure.suptitle("fidelity within the gates, and trials that the gates refuse")
    return figure


def _importances(ax: "Axes", study: "Study", space: Space, done: int) -> None:
    from optuna.importance import get_param_importances

    ax.set_title("what mattered")
    if done < ENOUGH:
        ax.text(0.5, 0.5, f"after {ENOUGH} trials", ha="center", va="center")
        ax.set_axis_off()
        return
    found = get_param_importances(study, params=list(space))
    names = list(reversed(found))
    ax.barh([_short(name) for name in names], [found[name] for name in names], color="tab:blue")
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the importance (PED-ANOVA)")


def _slice(ax: "Axes", key: str, part: Any, done: Sequence["FrozenTrial"]) -> None:
    """One key's values against the objective; refused trials hollow, the best one starred."""
    ranged = isinstance(part, Range)
    passed = [trial for trial in done if trial.constraints.get(GATES, 1) <= 0]
    refused = [trial for trial in done if trial not in passed]

    values = [trial.value or 0.0 for trial in passed]
    # Refused ones lie far below: where some passed they stand on a line of their own.
    line = min(values) - 0.15 * max(max(values) - min(values), 0.05) if values else None

    def points(trials: Sequence["FrozenTrial"]) -> tuple[list[Any], list[float]]:
        places = [t.params[key] if ranged else part.words.index(t.params[key]) for t in trials]
        low = line if trials is refused else None
        return places, [t.value or 0.0 if low is None else low for t in trials]

    ax.scatter(*points(refused), facecolors="none", edgecolors="tab:red", label="refused")
    if line is not None and refused:
        ax.axhline(line, color="tab:red", linewidth=0.5, linestyle=":")
    ax.scatter(*points(passed), color="tab:blue", label="passed")
    if passed:
        best = max(passed, key=lambda trial: trial.value or 0.0)
        ax.scatter(*points([best]), marker="*", s=180, color="black", label="best")
    if ranged and part.log:
        ax.set_xscale("log")
    if not ranged:
        ax.set_xticks(range(len(part.words)), part.words)
        ax.margins(x=0.3)
    ax.set_title(_short(key))
    ax.set_ylabel("fidelity")
    ax.legend(fontsize="small", loc="best")


def _short(key: str) -> str:
    return key.removeprefix("training.")
