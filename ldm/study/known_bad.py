"""Runs that are bad in a known way: what each must do to which metric, and who must refuse it.

The metrics are right if they move as the paper's tables say (arXiv 2208.12242): Table 3, prior
preservation; Table 4, class noun.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldm.checkpoint.files import read_json, write_json
from ldm.data.images import load_picture
from ldm.evaluation.gates import Gate, difference, margins_for
from ldm.evaluation.measure import Measurer
from ldm.evaluation.measured import Measured, fidelity_of, read_measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.pictures import ABOUT, HALVES, files_of, read_asked
from ldm.evaluation.select import select
from ldm.run.folder import read_config
from ldm.run.measure.evaluator import link
from ldm.run.measure.instruments import load_instruments
from ldm.study.runs import evaluation_of

log = logging.getLogger(__name__)

CHOOSING, REPORTING = HALVES
DEFAULT, CONTROL = "default", "captions"
MADE = ("base", "copies")  # from pictures alone, without training
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Expected:
    """metric is to be clearly (95 %) higher or lower than that of the variant `against`."""

    metric: str
    direction: Direction
    source: str
    against: str = DEFAULT


@dataclass(frozen=True)
class Variant:
    """what: in words. refused: what the selector is to say of it."""

    what: str
    refused: bool
    expected: tuple[Expected, ...] = ()


FIDELITY = "subject/fidelity/oracle"
LESS_LIKE = (
    Expected(FIDELITY, "down", "nothing is learnt"),
    Expected("subject/identity", "down", "nothing is learnt"),
)
VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant(
        "the configuration as it is",
        False,
        (
            Expected(FIDELITY, "up", "Table 1", "base"),
            Expected("subject/identity", "up", "Table 1", "base"),
        ),
    ),
    "base": Variant("the untouched base, 0 steps", True, LESS_LIKE),
    "no_prior": Variant(
        "without class images (prior weight 0)",
        True,
        (
            Expected("class/pres/oracle", "up", "Table 3: PRES .493 to .664"),
            Expected("class/diversity/oracle", "down", "Table 3: DIV .391 to .371"),
            Expected("class/identity", "up", "Figure 6: the class becomes the subject"),
            Expected("class/change/colour", "up", "Figure 6"),
        ),
    ),
    "long": Variant(
        "10 x the steps",
        True,
        (
            Expected("subject/copying/oracle", "up", "section 3.2: overfitting"),
            Expected("unrelated/drift/oracle", "up", "section 3.2: language drift"),
        ),
    ),
    "short": Variant(
        "1/10 of the steps",
        True,
        (*LESS_LIKE, Expected("class/drift/oracle", "down", "little is trained")),
    ),
    "wrong_noun": Variant(
        "another class noun",
        True,
        (
            Expected(FIDELITY, "down", "Table 4: DINO .744 to .454"),
            Expected("subject/class", "down", "the noun says another class than is drawn"),
        ),
    ),
    "no_noun": Variant(
        "no class noun, a drawing of [V]",
        True,
        (Expected(FIDELITY, "down", "Table 4: DINO .744 to .303"),),
    ),
    CONTROL: Variant(
        "captions that say each picture's setting: the control of shuffled",
        False,
        (Expected(FIDELITY, "up", "Table 1", "base"),),
    ),
    "shuffled": Variant(
        "the same captions, none beside its picture",
        True,
        (Expected("subject/setting", "down", "settings are learnt wrong", CONTROL),),
    ),
    "copies": Variant(
        "a model that returns the training pictures",
        True,
        (
            Expected("subject/copying/oracle", "up", "by construction"),
            Expected("subject/copied/oracle", "up", "by construction"),
            Expected("subject/setting", "down", "prompts are not heeded"),
            Expected("class/pres/oracle", "up", "by construction"),
            Expected("class/identity", "up", "by construction"),
        ),
    ),
    "frozen_text": Variant(
        "text encoder frozen, training.pivotal as configured",
        False,
        (
            Expected(FIDELITY, "up", "it learns", "base"),
            Expected("subject/identity", "up", "it learns", "base"),
        ),
    ),
}


def words_for(name: str, steps: int, other_noun: str, prompts: Sequence[str]) -> list[str]:
    """What a trained variant changes on the command line, beside its pictures.

    steps: of the default. other_noun: of another class. prompts: those asked, without class noun.
    Each run has one snapshot, its last, so that no better one can be chosen.
    """
    count = {"long": 10 * steps, "short": max(1, steps // 10)}.get(name, steps)
    special = {
        "no_prior": ["prior=null"],
        "wrong_noun": [f"subject.class_noun={other_noun}"],
        "no_noun": ["subject.prompt=a drawing of [V]", f"evaluation.prompts={list(prompts)!r}"],
        "frozen_text": [
            "model.train_text_encoder=false",
            "training.text_encoder_learning_rate=null",
            "training.text_encoder_stop=1.0",
        ],
    }
    length = [f"training.steps={count}", f"snapshots.every={count}", "samples.every=0"]
    return [*length, "evaluation.export=false", *special.get(name, [])]


@dataclass
class Result:
    """One variant of one subject. broken: the gates that refuse it."""

    measured: Measured
    base: Measured
    accepted: bool
    broken: list[Gate] = field(default_factory=list)


def trained_result(run: Path) -> Result:
    """What a finished run's evaluation says of its only snapshot."""
    found = evaluation_of(run)
    assert found is not None, f"{run} is not measured"
    ((step, gates),) = found["gates"].items()
    base = read_measured(run / "evaluation" / "base")
    measured = read_measured(run / "evaluation" / f"step-{int(step):06d}")
    broken = [Gate(**gate) for gate in gates if not gate["passed"]]
    return Result(measured, base, found["chosen"] is not None, broken)


def made_result(name: str, run: Path, folder: Path) -> Result:
    """Judge the untouched base, or a model that returns the training pictures, as a snapshot.

    run: the default's, whose base and references are the standard. folder: for the pictures and
    their numbers.
    """
    found, config = evaluation_of(run), read_config(run)
    assert found is not None and config.evaluation is not None
    pictures = {
        kind: [load_picture(Path(path)) for path in found["subject"][kind]]
        for kind in ("training", "heldout")
    }
    instruments = load_instruments(config.evaluation)
    measurer = Measurer(
        found["subject"]["identifier"],
        pictures["training"],
        pictures["heldout"],
        oracle=instruments.oracle,
        extractors=instruments.extractors,
        lpips=instruments.lpips,
    )
    standard = run / "evaluation" / "base"
    base = read_measured(standard)
    if name == "copies":
        copy_training_pictures(standard, folder, [Path(p) for p in found["subject"]["training"]])
    else:
        link(standard, folder)
    measured = measurer.measure(folder, base)
    fidelity = fidelity_of(base.scores[CHOOSING])
    assert fidelity is not None
    margins = margins_for(fidelity.rpartition("/")[2], config.evaluation.margins)
    ceiling = measurer.ceiling()
    choice = select(fidelity, base, {0: measured}, ceiling, found["floor"], margins)
    return Result(measured, base, choice.chosen is not None, choice.broken(0))


def copy_training_pictures(standard: Path, folder: Path, training: Sequence[Path]) -> None:
    """Fill a folder, as `pictures.draw` does, with the training pictures in turn."""
    about = {**(read_json(standard / ABOUT) or {}), "fingerprint": "the training pictures"}
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(files_of(read_asked(standard))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(training[place % len(training)], path)
    write_json(folder / ABOUT, about)


def moved(metric: str, new: Result, old: Result) -> Score | None:
    """Difference of a metric, new - old, on the reporting half; None where one of them lacks it.

    Picture by picture where both were asked the same with the same seeds; otherwise of the two
    scores, with the interval that independent ones have.
    """
    a, b = new.measured.scores[REPORTING].get(metric), old.measured.scores[REPORTING].get(metric)
    if a is None or b is None:
        return None
    paired = difference(metric, new.measured, old.measured, REPORTING)
    if paired is not None and abs(paired["value"] - (a["value"] - b["value"])) < 1e-6:
        return paired
    half = sum(((score["high"] - score["low"]) / 2) ** 2 for score in (a, b)) ** 0.5
    value = a["value"] - b["value"]
    return Score(value=value, low=value - half, high=value + half, n=min(a["n"], b["n"]))


def pooled(scores: Sequence[Score]) -> Score:
    """Mean over subjects of independent differences."""
    n = len(scores)
    value = sum(score["value"] for score in scores) / n
    below = sum((score["value"] - score["low"]) ** 2 for score in scores) ** 0.5 / n
    above = sum((score["high"] - score["value"]) ** 2 for score in scores) ** 0.5 / n
    return Score(value=value, low=value - below, high=value + above, n=n)


Results = Mapping[str, Mapping[str, Result]]  # variant -> subject -> result


def differences(results: Results, name: str, against: str) -> dict[str, Score]:
    """Every metric's difference between two variants, pooled over the subjects of both."""
    both = [s for s in results.get(name, {}) if s in results.get(against, {})]
    metrics = {m for s in both for m in results[name][s].measured.scores[REPORTING]}
    found = {
        metric: [
            score
            for subject in both
            if (score := moved(metric, results[name][subject], results[against][subject]))
        ]
        for metric in sorted(metrics)
    }
    return {metric: pooled(scores) for metric, scores in found.items() if scores}


def checks(results: Results) -> list[dict[str, Any]]:
    """Each expectation that can be looked at, with the difference found and whether it holds."""
    rows = []
    for name in results:
        for expected in VARIANTS[name].expected:
            found = differences(results, name, expected.against).get(expected.metric)
            if found is None:
                continue
            holds = found["low"] > 0 if expected.direction == "up" else found["high"] < 0
            rows.append(
                {
                    "variant": name,
                    "metric": expected.metric,
                    "direction": expected.direction,
                    "against": expected.against,
                    "source": expected.source,
                    "difference": found,
                    "holds": holds,
                }
            )
    return rows
