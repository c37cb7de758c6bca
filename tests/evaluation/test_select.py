"""The gates, each broken alone; the choice among those that pass; what is said of it."""

import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm.errors import UserError
from ldm.evaluation import gates as module
from ldm.evaluation.gates import MARGINS, Gate, Margins, difference, margins_for
from ldm.evaluation.measured import Measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.rows import column_scores, places_of
from ldm.evaluation.select import Choice, advice, nearest, select, should_stop, verdict
from ldm.evaluation.terms import full_name

FIDELITY = "subject/fidelity/oracle"
BASE: dict[str, float] = {
    FIDELITY: 0.2,
    "subject/identity": 0.0,
    "subject/prompt/oracle": 0.9,
    "subject/class": 0.95,
    "subject/copied/oracle": 0.0,
    "subject/diversity/oracle": 0.7,
    "class/identity": 0.0,
    "class/pres/oracle": 0.1,
    "class/class": 1.0,
    "class/diversity/oracle": 0.8,
    "unrelated/identity": 0.0,
    "unrelated/class": 0.95,
    "unrelated/setting": 0.9,
}
GOOD = BASE | {
    FIDELITY: 0.8,
    "subject/identity": 0.9,
    "subject/prompt/oracle": 0.85,
    "subject/copied/oracle": 0.1,
    "subject/diversity/oracle": 0.15,
    "class/pres/oracle": 0.12,
    "class/change/colour": 0.1,
    "class/kid/oracle": 0.0003,
    "unrelated/kid/oracle": 0.0002,
    "unrelated/drift/oracle": 0.2,
}
SETS = ("diversity", "kid", "change")  # metrics of sets of pictures: no rows
SHARES = ("identity", "class", "setting", "copied")
COUNTS = {"subject": (12, 4), "class": (1, 150), "unrelated": (10, 4)}  # prompts, pictures of each


def score(value: float, half: float = 0.01, n: int = 100) -> Score:
    return Score(value=value, low=value - half, high=value + half, n=n)


CEILING = {FIDELITY: score(0.85)}
FLOOR = {"class/change/colour": score(0.05), "class/kid/oracle": score(0.0)}


def measured(values: Mapping[str, float], noise: float = 0.02, seed: int = 0) -> Measured:
    """Pictures whose mean is `values`, and which differ by `noise`."""
    rows: list[dict[str, Any]] = []
    for about, (asked, count) in COUNTS.items():
        for prompt in range(asked):
            half = ("choosing", "reporting")[prompt % 2] if about == "subject" else ""
            for number in range(count):
                row = {"about": about, "half": half, "prompt": f"{about} {prompt}", "seed": number}
                if about != "subject":
                    row["asked/class"] = "robot"
                if about == "unrelated" and prompt % 2:
                    row["asked/setting"] = "at night"
                rows.append(row)
    for metric, value in values.items():
        about, column = metric.split("/", 1)
        if column.split("/")[0] in SETS:
            continue
        rng = np.random.default_rng([seed, zlib.crc32(metric.encode())])
        own = [row for row in rows if row["about"] == about]
        for place, row in enumerate(own):
            if column == "setting" and "asked/setting" not in row:
                continue
            if column.split("/")[0] in SHARES:
                row[column] = int((0.3 + 0.618034 * place) % 1 < value)
            else:
                row[column] = float(value + noise * rng.normal())
    scores = {}
    for half in ("choosing", "reporting"):
        scores[half] = {m: score(v) for m, v in values.items() if m.split("/")[1] in SETS}
        for about in COUNTS:
            found = column_scores(rows, places_of(rows, about, half))
            scores[half] |= {f"{about}/{column}": one for column, one in found.items()}
    return Measured(scores, rows, {}, Path())


def choose(
    *snapshots: Mapping[str, float] | Measured,
    base: Mapping[str, float] = BASE,
    ceiling: Mapping[str, Score] = CEILING,
    floor: Mapping[str, Score] = FLOOR,
    margins: Margins | None = None,
) -> Choice:
    """Steps 100, 200, ..."""
    found = {
        100 * (place + 1): one if isinstance(one, Measured) else measured(one, seed=place + 1)
        for place, one in enumerate(snapshots)
    }
    return select(FIDELITY, measured(base), found, ceiling, floor, margins)


def broken(choice: Choice, step: int = 100) -> list[str]:
    return [gate.name for gate in choice.broken(step)]


# --- gates


def test_a_good_snapshot_passes_every_gate() -> None:
    choice = choose(GOOD)
    assert choice.chosen == 100 and broken(choice) == []
    assert [gate.name for gate in choice.gates[100]] == [
        f"{FIDELITY} (above the base)",
        f"{FIDELITY} (half of the way)",
        f"{FIDELITY} (under the ceiling)",
        "subject/identity",
        "subject/prompt/oracle",
        "subject/class",
        "class/identity",
        "class/pres/oracle",
        "class/class",
        "class/change/colour",
        "class/kid/oracle",
        "class/diversity/oracle",
        "unrelated/identity",
        "unrelated/class",
        "unrelated/setting",
        "unrelated/kid/oracle",
        "unrelated/drift/oracle",
        "subject/copied/oracle",
        "subject/diversity/oracle",
    ]
    for gate in choice.gates[100]:
        below = gate.name in BELOW or gate.name.endswith(("base)", "way)"))
        assert (gate.value >= gate.limit) == below, gate


BELOW = (  # metrics with a least value
    "subject/identity",
    "subject/prompt/oracle",
    "subject/class",
    "class/class",
    "class/diversity/oracle",
    "unrelated/class",
    "unrelated/setting",
    "subject/diversity/oracle",
)


BAD = [  # metric, value, kind of gate
    ("subject/identity", 0.2, "learnt"),
    ("subject/prompt/oracle", 0.6, "prompt"),
    ("subject/class", 0.6, "prompt"),
    ("class/identity", 0.2, "drift"),
    ("class/pres/oracle", 0.35, "drift"),
    ("class/class", 0.8, "drift"),
    ("class/change/colour", 0.3, "drift"),
    ("class/kid/oracle", 0.02, "drift"),
    ("class/diversity/oracle", 0.5, "drift"),
    ("unrelated/identity", 0.3, "drift"),
    ("unrelated/class", 0.6, "drift"),
    ("unrelated/setting", 0.4, "drift"),
    ("unrelated/kid/oracle", 0.02, "drift"),
    ("unrelated/drift/oracle", 0.6, "drift"),
    ("subject/copied/oracle", 0.9, "copying"),
    ("subject/diversity/oracle", 0.005, "copying"),
]


@pytest.mark.parametrize(("metric", "bad", "kind"), BAD)
def test_each_gate_breaks_alone(metric: str, bad: float, kind: str) -> None:
    choice = choose(GOOD | {metric: bad})
    assert choice.chosen is None
    (gate,) = choice.broken(100)
    assert (gate.name, gate.kind) == (metric, kind)
    assert gate.value == pytest.approx(bad, abs=0.11)
    least = metric in BELOW
    assert (gate.value < gate.limit) == least
    told = "\n".join(choice.reasons)
    assert full_name(metric) in told and f"limit {gate.limit:.3g}" in told and gate.advice in told


def test_that_the_subject_is_seen_has_to_be_shown() -> None:
    """Noise does not help: of few pictures .4 is not .5, however far the interval reaches."""
    snapshot = measured(GOOD)
    for half in snapshot.scores.values():
        half["subject/identity"] = score(0.49, half=0.2)
    assert broken(choose(snapshot)) == ["subject/identity"]
    for half in snapshot.scores.values():
        half["subject/identity"] = score(0.5, half=0.2)
    assert broken(choose(snapshot)) == []


def test_every_gate_but_those_of_fidelity_was_broken() -> None:
    names = {gate.name for gate in choose(GOOD).gates[100] if "fidelity" not in gate.name}
    assert names == {metric for metric, _, _ in BAD}


@pytest.mark.parametrize(
    ("fidelity", "which"),
    [
        (0.2, ["above the base", "half of the way"]),
        (0.5, ["half of the way"]),  # half: 0.2 + 0.65 / 2 = 0.525
        (0.55, []),
        (0.95, ["under the ceiling"]),
    ],
)
def test_fidelity_lies_between_base_and_real_pictures(fidelity: float, which: list[str]) -> None:
    choice = choose(GOOD | {FIDELITY: fidelity})
    assert broken(choice) == [f"{FIDELITY} ({name})" for name in which]


def test_noise_alone_refuses_nothing() -> None:
    """Values beyond the limits, with intervals that reach back."""
    one = measured(GOOD, seed=1)
    for metric, limit in {"class/change/colour": 0.2, "class/kid/oracle": 0.002}.items():
        wide = Score(value=limit * 1.5, low=limit * 0.9, high=limit * 2, n=100)
        one.scores["choosing"][metric] = wide
        assert choose(one).chosen == 100
        one.scores["choosing"][metric] = wide | Score(low=limit * 1.1)  # type: ignore[typeddict-item]
        assert broken(choose(one)) == [metric]
        one.scores["choosing"][metric] = score(0.0)
    scarce = GOOD | {"subject/prompt/oracle": 0.72}  # 0.18 below the base, margin 0.15
    assert choose(measured(scarce, noise=0.4, seed=1)).chosen == 100
    assert broken(choose(measured(scarce, noise=0.01))) == ["subject/prompt/oracle"]
    alike = GOOD | {"class/pres/oracle": 0.25}  # 0.15 above the base, margin 0.1
    assert "class/pres/oracle" not in broken(choose(measured(alike, noise=0.8, seed=1)))
    assert broken(choose(measured(alike, noise=0.01))) == ["class/pres/oracle"]


def test_what_both_have_alike_is_no_noise() -> None:
    """Prompts differ much, and base and snapshot do alike: the paired difference is certain."""
    base, low = measured(BASE), measured(GOOD)
    for rows in zip(base.rows, low.rows, strict=True):
        for row, loss in zip(rows, (0.0, 0.2), strict=True):
            if row["about"] == "subject":
                row["prompt/oracle"] = (int(row["prompt"].split()[1]) // 2) % 2 * 0.8 - loss
    choice = select(FIDELITY, base, {100: low}, CEILING, FLOOR)
    assert broken(choice) == ["subject/prompt/oracle"]


def test_the_floor_is_what_is_allowed_beside_the_margin() -> None:
    at_most = {
        m: score(v) for m, v in {"class/change/colour": 0.2, "class/kid/oracle": 1.0}.items()
    }
    changed = GOOD | {"class/change/colour": 0.3, "class/kid/oracle": 0.5}
    assert choose(changed, floor=at_most).chosen == 100
    assert broken(choose(changed, floor={})) == ["class/change/colour", "class/kid/oracle"]


def test_drift_is_measured_by_what_the_base_varies() -> None:
    uniform = BASE | {"class/diversity/oracle": 0.3}  # so that 0.2 is two thirds of it
    assert broken(choose(GOOD, base=uniform)) == ["unrelated/drift/oracle"]


def test_without_an_oracle_the_rest_is_asked() -> None:
    def renamed(values: Mapping[str, float]) -> dict[str, float]:
        exact = ("identity", "class", "setting", "change")
        spaces = {m.replace("oracle", "dino"): v for m, v in values.items()}
        kept = {m: v for m, v in spaces.items() if m.split("/")[1] not in exact}
        del kept["subject/prompt/dino"]
        return kept | {"subject/prompt/clip": values["subject/prompt/oracle"] / 3}

    fidelity, base = "subject/fidelity/dino", measured(renamed(BASE))
    values = renamed(GOOD) | {"class/kid/dino": 1e-5, "unrelated/kid/dino": 1e-5}
    for rows in base.rows:
        rows.pop("asked/class", None), rows.pop("asked/setting", None)
    ceiling = {fidelity: CEILING[FIDELITY]}
    good = select(fidelity, base, {1: measured(values, seed=1)}, ceiling, {})
    assert good.chosen == 1 and len(good.gates[1]) == 11
    for metric, bad in {"subject/prompt/clip": 0.2, "class/pres/dino": 0.4}.items():
        found = select(fidelity, base, {1: measured(values | {metric: bad}, seed=1)}, ceiling, {})
        assert broken(found, 1) == [metric]


def test_one_picture_of_the_subject_has_no_ceiling() -> None:
    choice = choose(GOOD | {FIDELITY: 0.95}, ceiling={})
    assert choice.chosen == 100
    assert {gate.name for gate in choice.gates[100]}.isdisjoint(
        {f"{FIDELITY} (half of the way)", f"{FIDELITY} (under the ceiling)"}
    )
    assert broken(choose(BASE, ceiling={}))[0] == f"{FIDELITY} (above the base)"


def test_the_untouched_base_is_refused() -> None:
    choice = choose(measured(BASE))
    assert {gate.kind for gate in choice.broken(100)} == {"learnt"}


def test_only_the_choosing_half_is_looked_at() -> None:
    one = measured(GOOD)
    one.scores["reporting"] = {name: score(9.0) for name in one.scores["reporting"]}
    for row in one.rows:
        if row["half"] == "reporting":
            row["prompt/oracle"] = row["fidelity/oracle"] = -9.0
    assert choose(one).chosen == 100


def test_margins_by_name() -> None:
    assert margins_for("dino", {"pres": 0.3}).pres == 0.3
    assert margins_for("dino").kid == MARGINS["dino"].kid < MARGINS["oracle"].kid
    with pytest.raises(UserError, match=r"no drfit; known: learnt, .*drift"):
        margins_for("oracle", {"drfit": 0.1})
    leaky = GOOD | {"class/identity": 0.2}
    assert choose(leaky, margins=margins_for("oracle", {"leak": 0.3})).chosen == 100


def test_every_margin_is_used() -> None:
    """A margin that nothing passes breaks a gate of the good snapshot; clip_t has its own test."""
    for field in fields(Margins):
        if field.name == "clip_t":
            continue
        share = field.name in ("learnt", "identity", "diversity", "subject_diversity")
        broken_by = margins_for("oracle", {field.name: 9.0 if share else -9.0})
        choice = choose(GOOD, margins=broken_by)
        assert choice.chosen is None, field.name


# --- choosing


def fidelities(*values: float, **noise: float) -> list[Measured]:
    return [
        measured(GOOD | {FIDELITY: value}, seed=place, **noise)
        for place, value in enumerate(values, 1)
    ]


def test_the_highest_fidelity_of_those_that_pass() -> None:
    assert choose(*fidelities(0.6, 0.7, 0.8)).chosen == 300
    assert choose(*fidelities(0.6, 0.8, 0.7)).chosen == 200
    forgetful = measured(GOOD | {FIDELITY: 0.84, "class/identity": 0.5})
    choice = choose(*fidelities(0.3, 0.7), forgetful)
    assert choice.chosen == 200
    told = "\n".join(choice.reasons)
    assert "Step 200 is the first that passes every gate." in told
    assert (
        "Step 100 is refused" in told
        and "Step 300 is refused: class, leak: recognised as the subject is 0.5" in told
    )
    assert "What to change" not in told


def test_ties_go_to_the_earlier() -> None:
    choice = choose(*fidelities(0.75, 0.7500001, 0.75, noise=0.05))
    assert choice.chosen == 100
    assert "Step 200 is not shown to be better than step 100" in choice.reasons[1]
    same = measured(GOOD)
    assert choose(same, same, same).chosen == 100


def test_a_rise_counts_where_prompts_agree_on_it() -> None:
    """The same rise of the mean: all prompts alike, or one up and the next down."""
    first = measured(GOOD | {FIDELITY: 0.7})
    steady, erratic = measured(GOOD | {FIDELITY: 0.7}), measured(GOOD | {FIDELITY: 0.7})
    for before, one, other in zip(first.rows, steady.rows, erratic.rows, strict=True):
        if before["about"] == "subject":
            up = int(before["prompt"].split()[1]) // 2 % 2
            one["fidelity/oracle"] = before["fidelity/oracle"] + 0.02
            other["fidelity/oracle"] = before["fidelity/oracle"] + (0.14 if up else -0.1)
    gains = [difference(FIDELITY, late, first) for late in (steady, erratic)]
    assert [gain and gain["value"] for gain in gains] == pytest.approx([0.02, 0.02])
    assert choose(first, steady).chosen == 200
    assert choose(first, erratic).chosen == 100


def test_steps_that_each_are_a_tie_do_not_hide_a_rise() -> None:
    """The third is compared with the first, which it beats, not with the second, a tie."""
    first, second, third = (measured(GOOD | {FIDELITY: 0.7}) for _ in range(3))
    for before, one, other in zip(first.rows, second.rows, third.rows, strict=True):
        if before["about"] == "subject":
            up = int(before["prompt"].split()[1]) // 2 % 2
            one["fidelity/oracle"] = before["fidelity/oracle"] + (0.06 if up else -0.04)
            other["fidelity/oracle"] = before["fidelity/oracle"] + 0.02
    choice = choose(first, second, third)
    assert "Step 200 is not shown to be better than step 100" in choice.reasons[1]
    assert "Step 300 is better than step 100" in choice.reasons[2]
    assert choose(second, third).chosen == 100


def test_a_difference_pairs_prompt_and_seed_whatever_the_order() -> None:
    old, new = measured(BASE), measured(GOOD, seed=1)
    wanted = difference("class/pres/oracle", new, old)
    new.rows.reverse()
    assert difference("class/pres/oracle", new, old) == pytest.approx(wanted)
    assert wanted is not None and wanted["value"] == pytest.approx(0.02, abs=0.005)
    assert wanted["n"] == 150, "class pictures are one prompt's: each is on its own"
    subject = difference(FIDELITY, new, old)
    assert subject is not None and subject["n"] == 6, "prompts"
    assert difference("class/kid/oracle", new, old) is None
    for row in new.rows:
        row["seed"] += 1000
    assert difference(FIDELITY, new, old) is None


def test_no_snapshots() -> None:
    with pytest.raises(ValueError, match="no snapshots"):
        choose()


# --- what is said


def test_advice_where_nothing_passes() -> None:
    early, late = GOOD | {FIDELITY: 0.3}, GOOD | {"class/identity": 0.4}
    assert advice(choose(early)) == advice(choose(early, early)) == module.LEARN
    assert advice(choose(late, late)) == module.KEEP
    assert "no step lies between" in advice(choose(early, late))
    both = GOOD | {FIDELITY: 0.3, "subject/prompt/oracle": 0.4}
    assert advice(choose(both)) == f"{module.LEARN}; or {module.FOLLOW}"
    choice = choose(both, late | {"class/class": 0.5}, late)
    assert nearest(choice) == 300 and choice.reasons[-1] == f"What to change: {module.KEEP}."
    assert sum("is refused" in reason for reason in choice.reasons) == 3


def test_the_verdict_is_two_sentences_about_the_reporting_half() -> None:
    base, one = measured(BASE), measured(GOOD, seed=1)
    one.scores["reporting"][FIDELITY] = score(0.77, 0.03)
    text = verdict(choose(one), base, {100: one}, CEILING)
    assert text.startswith(
        f"Step 100, the only snapshot, passes every gate; its {full_name(FIDELITY)} is 0.77 "
        "(0.74 to 0.80) "
        "(the untouched base's is 0.20, that of real pictures 0.85). Beside it: "
    )
    assert "show the subject 0.00 (base 0.00)" in text and text.count(". ") == 1
    late = measured(GOOD | {"class/identity": 0.4})
    text = verdict(choose(late), base, {100: late}, CEILING)
    assert text == (
        "No snapshot is good enough; step 100 comes nearest and fails in "
        "class, leak: recognised as the subject. "
        f"What to change: {module.KEEP}."
    )


# --- stopping early


def stops(*snapshots: Mapping[str, float], patience: int = 2) -> str | None:
    found = {100 * (place + 1): measured(one) for place, one in enumerate(snapshots)}
    choice = select(FIDELITY, measured(BASE), found, CEILING, FLOOR)
    return should_stop(FIDELITY, found, choice, patience)


def test_training_ends_when_fidelity_no_longer_rises() -> None:
    rising = [GOOD | {FIDELITY: value} for value in (0.5, 0.6, 0.7)]
    assert stops(*rising) is None
    assert stops(*rising, rising[0]) is None
    told = stops(*rising, rising[0], rising[2])
    assert told is not None and "has not risen for 2 measurements, up to step 500" in told
    assert stops(*rising, rising[0], rising[2], patience=3) is None


def test_training_ends_when_what_was_known_is_lost() -> None:
    lost = GOOD | {"class/identity": 0.4}
    told = stops(GOOD, lost)
    assert told is not None and "step 200 has learnt the subject but class, leak" in told
    assert stops(GOOD, GOOD | {"subject/copied/oracle": 0.9}) is not None
    assert stops(lost, GOOD) is None, "the last one counts"
    assert stops(GOOD, GOOD | {"subject/prompt/oracle": 0.4}) is None
    assert stops(BASE | {"class/identity": 0.4}) is None, "not learnt yet"


def test_kinds_of_gates() -> None:
    kinds = {
        "subject/fidelity/dino (above the base)": "learnt",
        "subject/fidelity/dino (under the ceiling)": "copying",
        "subject/prompt/clip": "prompt",
    }
    assert {name: Gate(name, True, 0, 0, "").kind for name in kinds} == kinds
