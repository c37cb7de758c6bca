"""What a snapshot must pass to be chosen: it has learnt the subject and kept what the base knew.

A gate breaks only where a score's 95 % interval lies wholly beyond its limit, so that noise alone
refuses nothing. That the subject was learnt has to be shown, though: there the lower end counts
against the base's upper end, and the value itself against half of the way and the least identity.

Everything here works on the choosing half of the prompts and on nothing but `Measured`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.measured import Measured, Scores
from ldm.evaluation.metrics import Score
from ldm.evaluation.pictures import HALVES
from ldm.evaluation.rows import places_of

CHOOSING, REPORTING = HALVES
LEARN = "more steps or a higher learning rate, and a class noun that is the right one"
KEEP = "fewer steps, a lower learning rate, more class images or a larger prior weight"
FOLLOW = "fewer steps or a lower learning rate, and captions that say what else pictures show"
VARY = "fewer steps, or more and more different pictures of the subject"


@dataclass(frozen=True)
class Margins:
    """How far from the base a snapshot may be, and how near to the subject it must come.

    These are for the oracle's space; see `MARGINS` for others.
    """

    # Share of the way from the base's fidelity to that of real pictures. In DINO a wrong class noun
    # gets .454 and none .303 where the right one gets .744 (arXiv 2208.12242, Table 4); Textual
    # Inversion gets .569 where real pictures have .774 (Table 1).
    learnt: float = 0.5
    identity: float = 0.5  # least share of subject pictures in which the oracle sees the subject
    prompt: float = 0.15  # loss in the share of the words asked for that are read off
    clip_t: float = 0.03  # loss in CLIP-T: Textual Inversion's is .05 below DreamBooth's (Table 1)
    subject_class: float = 0.1  # loss in the share of subject pictures of the right class
    leak: float = 0.05  # most of the class pictures, and of others, in which the subject is seen
    # Rise of the class pictures' mean cosine to the subject. Of pictures of the oracle's world it
    # is .1 where a tenth show the subject; in DINO .17 without prior preservation (Table 3).
    pres: float = 0.1
    accuracy: float = 0.1  # loss in the share of class, and of other, pictures that are as told
    change: float = 0.15  # total variation of an attribute on class pictures, above the floor
    # KID of class, and of other, pictures above the floor: what it is when a fifth of the class
    # pictures show the subject (it grows with the square of the share).
    kid: float = 0.002
    diversity: float = 0.75  # least mean distance of class pictures, as a share of the base's
    # Most drift of other things, as a share of the distance of two class pictures of the base, that
    # is, of pictures with nothing in common but the prompt.
    drift: float = 0.5
    copied: float = 0.5  # most of the pictures that are nearer to a training picture than normal
    subject_diversity: float = 0.25  # least distance within a prompt, as a share of real pictures'


# KID of a fifth: about 3 / D x (real-real + class-class - 2 class-real cosine) / 25, with Table 1
# and 3's cosines and D = 384 and 512. CLIP-I differs about half as much as DINO (Table 1).
MARGINS = {
    "oracle": Margins(),
    "dino": Margins(kid=1e-4),
    "clip": Margins(kid=2.5e-5, pres=0.05),
}


def margins_for(space: str, changes: Mapping[str, float] | None = None) -> Margins:
    """The margins of a space with some changed by name. UserError: there is no such margin."""
    known = [field.name for field in fields(Margins)]
    if unknown := sorted({*(changes or {})} - {*known}):
        raise UserError(
            f"evaluation.margins: there is no {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return replace(MARGINS[space], **(changes or {}))


@dataclass(frozen=True)
class Gate:
    """One thing asked of a snapshot: a metric's value, the limit it must keep, what else to do."""

    name: str  # the metric, and in brackets what of it where there are several gates
    passed: bool
    value: float
    limit: float
    advice: str

    @property
    def kind(self) -> str:
        """ "learnt", "copying" (both of subject pictures), "prompt" or "drift"."""
        if not self.name.startswith("subject/"):
            return "drift"
        if "/copied/" in self.name or "/diversity/" in self.name or "ceiling" in self.name:
            return "copying"
        return "learnt" if self.name.startswith(("subject/f", "subject/identity")) else "prompt"


def difference(metric: str, new: Measured, old: Measured, half: str = CHOOSING) -> Score | None:
    """A metric's mean difference over the pictures of the same prompt and seed, new - old.

    The interval resamples prompts; class pictures, which are all of one prompt or very few, one by
    one. None where no picture has the metric in both: it is one of sets, or was not measured.
    """
    about, column = metric.split("/", 1)
    theirs = {}
    for place in places_of(old.rows, about, half):
        row = old.rows[place]
        if column in row:
            theirs[row["prompt"], row["seed"]] = row[column]
    mine = [new.rows[place] for place in places_of(new.rows, about, half)]
    pairs = [
        (row[column], theirs[row["prompt"], row["seed"]], row["prompt"], str(row["seed"]))
        for row in mine
        if column in row and (row["prompt"], row["seed"]) in theirs
    ]
    if not pairs:
        return None
    values, others, prompts, seeds = zip(*pairs, strict=True)
    return metrics.paired_difference(values, others, seeds if about == "class" else prompts)


@dataclass(frozen=True)
class Judge:
    """Makes gates for one snapshot; each method gives one, or none where a metric is missing."""

    base: Measured
    snapshot: Measured

    @property
    def scores(self) -> Scores:
        return self.snapshot.scores[CHOOSING]

    def at_most(self, metric: str, limit: float, advice: str, note: str = "") -> list[Gate]:
        if (score := self.scores.get(metric)) is None:
            return []
        return [Gate(metric + note, score["low"] <= limit, score["value"], limit, advice)]

    def at_least(self, metric: str, limit: float, advice: str) -> list[Gate]:
        if (score := self.scores.get(metric)) is None:
            return []
        return [Gate(metric, score["high"] >= limit, score["value"], limit, advice)]

    def shown(self, metric: str, limit: float, advice: str) -> list[Gate]:
        """As `at_least`, but noise counts against it: the value itself must reach the limit."""
        if (score := self.scores.get(metric)) is None:
            return []
        return [Gate(metric, score["value"] >= limit, score["value"], limit, advice)]

    def no_rise(self, metric: str, margin: float, advice: str) -> list[Gate]:
        """Not above the base by more than `margin`, picture by picture."""
        found, score = difference(metric, self.snapshot, self.base), self.scores.get(metric)
        if found is None or score is None:
            return []
        limit = score["value"] - found["value"] + margin
        return [Gate(metric, found["low"] <= margin, score["value"], limit, advice)]

    def no_loss(self, metric: str, margin: float, advice: str) -> list[Gate]:
        """Not below the base by more than `margin`, picture by picture."""
        found, score = difference(metric, self.snapshot, self.base), self.scores.get(metric)
        if found is None or score is None:
            return []
        limit = score["value"] - found["value"] - margin
        return [Gate(metric, found["high"] >= -margin, score["value"], limit, advice)]


def gates_of(
    fidelity: str,
    base: Measured,
    snapshot: Measured,
    ceiling: Mapping[str, Score],
    floor: Mapping[str, Score],
    margins: Margins,
) -> list[Gate]:
    """All gates of one snapshot for which there are metrics.

    fidelity: the metric chosen by, "subject/fidelity/<space>", whose space the other gates take.
    ceiling, floor: of `Measurer.ceiling` and `floor_of`; either may be empty.
    """
    judge, space = Judge(base, snapshot), fidelity.rsplit("/", 1)[1]
    return [
        *_learnt(judge, fidelity, ceiling, margins),
        *_prompt(judge, margins),
        *_class_kept(judge, space, floor, margins),
        *_others_kept(judge, space, floor, margins),
        *_no_copies(judge, space, ceiling.get(fidelity), margins),
    ]


def _learnt(
    judge: Judge, fidelity: str, ceiling: Mapping[str, Score], margins: Margins
) -> list[Gate]:
    before, now = judge.base.scores[CHOOSING][fidelity], judge.scores[fidelity]
    above = now["low"] > before["high"]
    gates = [Gate(f"{fidelity} (above the base)", above, now["value"], before["high"], LEARN)]
    if real := ceiling.get(fidelity):
        way = before["value"] + margins.learnt * (real["value"] - before["value"])
        passed = now["value"] >= way
        gates.append(Gate(f"{fidelity} (half of the way)", passed, now["value"], way, LEARN))
        gates += judge.at_most(fidelity, real["high"], VARY, " (under the ceiling)")
    return gates + judge.shown("subject/identity", margins.identity, LEARN)


def _prompt(judge: Judge, margins: Margins) -> list[Gate]:
    words = judge.no_loss("subject/prompt/oracle", margins.prompt, FOLLOW)
    words += judge.no_loss("subject/class", margins.subject_class, FOLLOW)
    return words or judge.no_loss("subject/prompt/clip", margins.clip_t, FOLLOW)


def _class_kept(
    judge: Judge, space: str, floor: Mapping[str, Score], margins: Margins
) -> list[Gate]:
    gates = judge.at_most("class/identity", margins.leak, KEEP)
    gates += judge.no_rise(f"class/pres/{space}", margins.pres, KEEP)
    for attribute in _told(judge.base, "class"):
        gates += judge.no_loss(f"class/{attribute}", margins.accuracy, KEEP)
    for metric in [name for name in judge.scores if name.startswith("class/change/")]:
        gates += judge.at_most(metric, _value(floor.get(metric)) + margins.change, KEEP)
    metric = f"class/kid/{space}"
    gates += judge.at_most(metric, _value(floor.get(metric)) + margins.kid, KEEP)
    if (before := judge.base.scores[CHOOSING].get(f"class/diversity/{space}")) is not None:
        least = margins.diversity * before["value"]
        gates += judge.at_least(f"class/diversity/{space}", least, KEEP)
    return gates


def _others_kept(
    judge: Judge, space: str, floor: Mapping[str, Score], margins: Margins
) -> list[Gate]:
    gates = judge.at_most("unrelated/identity", margins.leak, KEEP)
    for attribute in _told(judge.base, "unrelated"):
        gates += judge.no_loss(f"unrelated/{attribute}", margins.accuracy, KEEP)
    gates += judge.at_most(f"unrelated/kid/{space}", margins.kid, KEEP)
    if (apart := judge.base.scores[CHOOSING].get(f"class/diversity/{space}")) is not None:
        gates += judge.at_most(f"unrelated/drift/{space}", margins.drift * apart["value"], KEEP)
    return gates


def _no_copies(judge: Judge, space: str, ceiling: Score | None, margins: Margins) -> list[Gate]:
    gates = judge.at_most(f"subject/copied/{space}", margins.copied, VARY)
    if ceiling is not None:
        least = margins.subject_diversity * (1 - ceiling["value"])
        gates += judge.at_least(f"subject/diversity/{space}", least, VARY)
    return gates


def _told(measured: Measured, about: str) -> list[str]:
    """The attributes that prompts of a kind name."""
    found = {key for place in places_of(measured.rows, about) for key in measured.rows[place]}
    return sorted(key.removeprefix("asked/") for key in found if key.startswith("asked/"))


def _value(score: Score | None) -> float:
    return 0.0 if score is None else score["value"]
