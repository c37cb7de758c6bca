"""What the page of a run that has not ended says of how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.evaluation.report.data import BASE, RunFiles
from ldm.evaluation.report.table import Row, headlines
from ldm.evaluation.terms import full_name


@dataclass(frozen=True)
class Status:
    """How far a run is. refresh: seconds after which a browser reads the page again; None: the run
    does not go on by itself. share: of its whole time that is over, 0 to 1; None: not known."""

    doing: str  # a sentence
    go_on: str  # the command that goes on with the run
    share: float | None = None
    refresh: int | None = None
    facts: Sequence[tuple[str, str]] = field(default_factory=list)


def newest(run: RunFiles) -> tuple[str, list[tuple[str, Row]]]:
    """The step that was measured last, and what to look at first of it, beside the base's.

    Each with a name that says of which pictures. Empty where nothing is measured.
    """
    measured = [key for key in run.steps if run.scores(key)]
    if not measured or not run.scores(BASE):
        return "", []
    return measured[-1], [(full_name(row.metric), row) for row in headlines(run, measured[-1])]


def sections(run: RunFiles, status: Status | None) -> dict[str, Any]:
    """What the template fills in of it."""
    step, rows = newest(run) if status else ("", [])
    return {"status": status, "newest_step": step, "newest": rows}
