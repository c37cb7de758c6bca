"""Which snapshot is best: of those that pass every gate, the one with the highest fidelity.

Fidelity alone picks the wrong one: without prior preservation the paper's DINO score rises from
.684 to .712 while the class collapses into the subject (arXiv 2208.12242, Table 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ldm.evaluation.gates import (
    CHOOSING,
    REPORTING,
    Gate,
    Margins,
    difference,
    gates_of,
    margins_for,
)
from ldm.evaluation.measured import Measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.terms import full_name

BETWEEN = (
    "no step lies between too little and too much; a lower learning rate with more steps, more "
    "class images, and snapshots more often"
)
Snapshots = Mapping[int, Measured]  # step -> what was measured of it


@dataclass(frozen=True)
class Choice:
    """The chosen step, None where no snapshot passes; why, in sentences; each snapshot's gates."""

    fidelity: str
    chosen: int | None
    reasons: list[str]
    gates: dict[int, list[Gate]] = field(repr=False)

    def broken(self, step: int) -> list[Gate]:
        """The gates that a snapshot does not pass."""
        return [gate for gate in self.gates[step] if not gate.passed]


def select(
    fidelity: str,
    base: Measured,
    snapshots: Snapshots,
    ceiling: Mapping[str, Score],
    floor: Mapping[str, Score],
    margins: Margins | None = None,
) -> Choice:
    """Choose on the choosing half; margins: those of the fidelity's space where none are given.

    In rising order of steps, a snapshot that passes every gate takes the place of an earlier one
    only where its fidelity is higher by a paired bootstrap over prompts (interval above 0): ties go
    to the earlier, which is nearer to the base. ValueError: no snapshots.
    """
    if not snapshots:
        raise ValueError("no snapshots to choose from")
    margins = margins or margins_for(fidelity.rsplit("/", 1)[1])
    steps = sorted(snapshots)
    gates = {
        step: gates_of(fidelity, base, snapshots[step], ceiling, floor, margins) for step in steps
    }
    passing = [step for step in steps if all(gate.passed for gate in gates[step])]
    chosen, reasons = None, []
    for step in passing:
        if chosen is None:
            chosen = step
            reasons.append(f"Step {step} is the first that passes every gate.")
            continue
        gain = difference(fidelity, snapshots[step], snapshots[chosen])
        if gain is not None and gain["low"] > 0:
            reasons.append(f"Step {step} is better than step {chosen}: {_gain(fidelity, gain)}.")
            chosen = step
        elif gain is not None:
            reasons.append(
                f"Step {step} is not shown to be better than step {chosen}, the earlier: "
                f"{_gain(fidelity, gain)}."
            )
    choice = Choice(fidelity, chosen, reasons, gates)
    reasons += [_refusal(step, choice.broken(step)) for step in steps if step not in passing]
    if chosen is None:
        reasons.append(f"What to change: {advice(choice)}.")
    return choice


def nearest(choice: Choice) -> int:
    """The snapshot that breaks the fewest gates; of several the earliest."""
    return min(choice.gates, key=lambda step: (len(choice.broken(step)), step))


def advice(choice: Choice) -> str:
    """What to change where nothing passes: what the nearest snapshot's broken gates say.

    Where some snapshots have not learnt yet and all the others have forgotten already, more steps
    and fewer are both wrong.
    """
    kinds = {step: {gate.kind for gate in choice.broken(step)} for step in choice.gates}
    early = {step for step in kinds if "learnt" in kinds[step]}
    late = {step for step in kinds if kinds[step] - {"learnt"}}
    if early and late and not early & late:
        return BETWEEN
    return _advised(choice.broken(nearest(choice)))


def verdict(
    choice: Choice, base: Measured, snapshots: Snapshots, ceiling: Mapping[str, Score]
) -> str:
    """Two sentences for people, with the numbers of the reporting half."""
    fidelity = choice.fidelity
    if choice.chosen is None:
        step = nearest(choice)
        broken = "; ".join(_plain(gate.name) for gate in choice.broken(step))
        return (
            f"No snapshot is good enough; step {step} comes nearest and fails in {broken}. "
            f"What to change: {advice(choice)}."
        )
    scores, before = snapshots[choice.chosen].scores[REPORTING], base.scores[REPORTING]
    others = "the only snapshot" if len(snapshots) == 1 else f"chosen of {len(snapshots)} snapshots"
    compared = f"the untouched base's is {before[fidelity]['value']:.2f}"
    if fidelity in ceiling:
        compared += f", that of real pictures {ceiling[fidelity]['value']:.2f}"
    first = (
        f"Step {choice.chosen}, {others}, passes every gate; its {full_name(fidelity)} is "
        f"{_interval(scores[fidelity])} ({compared})."
    )
    told = [
        f"{words} {scores[metric]['value']:.2f} (base {before[metric]['value']:.2f})"
        for metric, words in _told(fidelity)
        if metric in scores and metric in before
    ]
    return f"{first} Beside it: {', '.join(told)}." if told else f"{first} Nothing else is known."


def should_stop(fidelity: str, snapshots: Snapshots, choice: Choice, patience: int) -> str | None:
    """Why training may end now; None where it should go on.

    Where the last of the snapshots measured by now has learnt the subject but broken a gate of
    drift or copying (what is lost does not come back); or where the mean fidelity of none of the
    last `patience` was above that of all before them.
    """
    steps = sorted(snapshots)
    broken = choice.broken(steps[-1])
    lost = [gate for gate in broken if gate.kind in ("drift", "copying")]
    if lost and not any(gate.kind == "learnt" for gate in broken):
        return f"step {steps[-1]} has learnt the subject but {_said(lost[0])}"
    values = [snapshots[step].scores[CHOOSING][fidelity]["value"] for step in steps]
    if len(values) > patience and max(values[-patience:]) <= max(values[:-patience]):
        name = full_name(fidelity)
        return f"{name} has not risen for {patience} measurements, up to step {steps[-1]}"
    return None


def _told(fidelity: str) -> list[tuple[str, str]]:
    """Metrics worth a word in a verdict, of those that there are."""
    space = fidelity.rsplit("/", 1)[1]
    return [
        ("subject/prompt/oracle", "share of words asked for that are drawn"),
        ("subject/prompt/clip", "CLIP-T"),
        ("class/identity", "share of plain class pictures that show the subject"),
        (f"class/pres/{space}", "likeness of class pictures to the subject"),
        (f"class/diversity/{space}", "diversity of class pictures"),
    ]


def _refusal(step: int, broken: Sequence[Gate]) -> str:
    listed = "; ".join(map(_said, broken))
    return f"Step {step} is refused: {listed}. That asks for {_advised(broken)}."


def _advised(gates: Sequence[Gate]) -> str:
    return "; or ".join(dict.fromkeys(gate.advice for gate in gates))


def _said(gate: Gate) -> str:
    return f"{_plain(gate.name)} is {gate.value:.3g}, limit {gate.limit:.3g}"


def _plain(gate: str) -> str:
    """A gate's name in words."""
    metric, *note = gate.split(" ", 1)
    return " ".join([full_name(metric), *note])


def _gain(fidelity: str, gain: Score) -> str:
    return f"{full_name(fidelity)} differs by {_interval(gain, '+.3f')} over {gain['n']} prompts"


def _interval(score: Score, form: str = ".2f") -> str:
    return f"{score['value']:{form}} ({score['low']:{form}} to {score['high']:{form}})"
