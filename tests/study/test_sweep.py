"""Sweeps: what is searched, what a run is worth, several processes, the winner."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image

import scripts.sweep
from ldm.config import flat, load_config
from ldm.errors import UserError
from ldm.study import sweep
from ldm.study.space import Choice, Range, corners, overrides, read_space, within
from ldm.study.sweep import Verdict, give_up_abandoned, open_study, verdict_of
from tests.forked import forked
from tests.study.program import FAILS, score

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
MAIN_JOB = ROOT / "configs" / "dreambooth.yaml"


# --- what is searched


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1e-6..1e-4,log", Range(1e-6, 1e-4, True)),
        ("100..600,100", Range(100, 600, False, 100)),
        ("1..8", Range(1, 8)),
        ("8..64,log", Range(8, 64, True)),
        ("0..1.5", Range(0.0, 1.5)),
        ("0.0..1.0,0.25", Range(0.0, 1.0, False, 0.25)),
        ("data|base", Choice(("data", "base"))),
        ("true|false", Choice(("true", "false"))),
    ],
)
def test_ranges_and_choices(text: str, part: Range | Choice) -> None:
    space, fixed = read_space([f"a.b={text}", "c.d=5", "data.cache=../x", "e=1..x"])
    assert space == {"a.b": part}
    assert fixed == ["c.d=5", "data.cache=../x", "e=1..x"]
    assert [type(end) for end in space["a.b"].ends()[:2]] == [type(e) for e in part.ends()[:2]]
    distribution = space["a.b"].distribution()
    for end in part.ends():
        assert distribution._contains(distribution.to_internal_repr(end))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("a=5..1", "empty"),
        ("a=0..1,log", "above 0"),
        ("a=1..5,log,2", "must be key"),
        ("a=1..5,fast", "must be key"),
        ("a=1..5,9", "fit into"),
        ("a=x|x", "must be key"),
        ("a=x|", "must be key"),
        ("a=5", "nothing to search"),
    ],
)
def test_wrong_ranges(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_space([word])
    with pytest.raises(UserError, match="a is searched already"):
        read_space(["a=1..2", "a=3..4"])


def test_values_reach_the_configuration_unchanged() -> None:
    value = 3.141592653589793e-05
    words = overrides({"training.learning_rate": value, "training.steps": 200})
    config = load_config([MAIN_JOB], words)
    assert config.training.learning_rate == value and config.training.steps == 200


def test_corners_hold_every_end_and_choice() -> None:
    space, _ = read_space(["a=1..2", "b=x|y|z"])
    assert corners(space) == [["a=1", "b=x"], ["a=2", "b=y"], ["a=2", "b=z"]]


def test_the_configuration_itself_where_it_lies_within() -> None:
    space, _ = read_space(["a=1..3", "b=null|x", "c=0..10,4", "d=1..2", "e=true|false"])
    config = {"a": 2, "b": None, "c": 5, "d": 9, "e": True}
    assert within(space, config) == {"a": 2, "b": "null", "e": "true"}


# --- what a run is worth


def evaluation(fidelity: float, gates: list[tuple[float, float, bool]]) -> dict:
    passed = all(good for *_, good in gates)
    scores = {"subject/fidelity/oracle": score(fidelity), "subject/fidelity/dino": score(0.0)}
    told = [{"name": "g", "value": v, "limit": li, "passed": good} for v, li, good in gates]
    return {
        "chosen": 5 if passed else None,
        "choosing": {"snapshots": {"5": scores}},
        "gates": {"5": told},
    }


def test_a_run_that_passes_is_worth_its_fidelity_on_the_choosing_half() -> None:
    assert verdict_of(evaluation(0.7, [(0.1, 0.2, True)])) == Verdict(0.7, 0.0)


def test_what_the_gates_refuse_is_ordered_by_how_far_off_it_is() -> None:
    near = verdict_of(evaluation(0.9, [(0.3, 0.2, False), (9, 0, True)]))
    far = verdict_of(evaluation(0.9, [(0.3, 0.2, False), (0.25, 0.5, False)]))
    assert near.violation == pytest.approx(0.5) and far.violation == pytest.approx(1.0)
    assert -2 < far.value < near.value < -1
    tiny = verdict_of(evaluation(0.9, [(0.002, 0.001, False)]))
    assert tiny.violation == pytest.approx(0.01), "a share of 0.1 where the limit is near 0"
    several = evaluation(0.9, [(0.3, 0.2, False)])
    several["gates"]["9"] = [{"name": "g", "value": 0.21, "limit": 0.2, "passed": False}]
    assert verdict_of(several).violation == pytest.approx(0.05), "of the nearest snapshot"


# --- whole sweeps, with a program that stands in for main.py


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scripts.sweep, "PROGRAM", PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["scripts/sweep.py", "..."])
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "0.png")
    return tmp_path / "out"


def search(out: Path, *words: str) -> int:
    given = ["--base", str(MAIN_JOB), "--out", str(out), *words]
    if "--subjects" not in words:
        given += ["--subjects", f"{out.parent / 'first'}:dog"]
    return scripts.sweep.main(given)


SPACE = ("training.steps=100..1000,100", "training.learning_rate=1e-5..1e-2,log")


def test_a_sweep_finds_the_best_that_passes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(out, *SPACE, "prior.target=data|base", "--trials", "6") == 0
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    first = rows[0]
    as_it_is = flat(load_config([MAIN_JOB], []))
    assert int(first["training.steps"]) == as_it_is["training.steps"]
    assert first["prior.target"] == as_it_is["prior.target"]
    assert float(first["training.learning_rate"]) == as_it_is["training.learning_rate"]
    for row in rows:  # the stand-in: fidelity 0.51 + steps / 2000 + rate, refused from 900 on
        steps = int(row["training.steps"])
        value = 0.51 + steps / 2000 + float(row["training.learning_rate"])
        assert (float(row["violation"]) > 0) == (steps >= 900)
        assert (
            float(row["value"]) < -1 if steps >= 900 else math.isclose(float(row["value"]), value)
        )
    best = max(rows, key=lambda row: float(row["value"]))
    config = load_config([MAIN_JOB, out / "winner.yaml"], [])
    assert config.training.steps == int(best["training.steps"]) < 900
    assert config.training.learning_rate == float(best["training.learning_rate"])
    head = (out / "winner.yaml").read_text()
    assert "python scripts/sweep.py ..." in head and f"--base {MAIN_JOB}" in head
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 800 and picture.convert("L").getextrema() == (0, 255)
    assert f"best: trial {best['trial']}" in capsys.readouterr().out


def test_a_sweep_goes_on_where_it_was(out: Path) -> None:
    assert search(out, *SPACE, "--trials", "2") == 0
    assert search(out, *SPACE, "--trials", "3") == 0
    trials = open_study(out).get_trials()
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert len({str(trial.params) for trial in trials}) == 3, "each draws anew"


def test_other_conditions_are_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(out, *SPACE, "--trials", "1") == 0
    assert search(out, "training.steps=100..200", "--trials", "2") == 2
    assert "another space" in capsys.readouterr().err
    assert search(out, *SPACE, "prior.count=3", "--trials", "2") == 2
    assert "another configuration" in capsys.readouterr().err


def test_a_trial_that_was_broken_off_goes_on(out: Path) -> None:
    assert search(out, *SPACE, "--trials", "1") == 0
    study = open_study(out)
    space, _ = read_space(SPACE)
    lost = study.ask({key: part.distribution() for key, part in space.items()})
    assert search(out, *SPACE, "--trials", "2") == 0
    trials = open_study(out).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[2].params == lost.params
    with (out / "trials.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["0", "2"]


def test_a_trial_of_a_living_process_is_left_alone(out: Path) -> None:
    out.mkdir()
    study = open_study(out)
    trial = study.ask()
    with sweep._lock_of(out / "locks", trial.number):
        give_up_abandoned(study, out / "locks")
        assert study.trials[0].state.name == "RUNNING"
    give_up_abandoned(study, out / "locks")
    assert [one.state.name for one in study.trials] == ["FAIL", "WAITING"]


def with_stand_in(words: list[str]) -> int:
    vars(scripts.sweep)["PROGRAM"] = PROGRAM
    return scripts.sweep.main(words)


def test_several_processes_share_the_trials(out: Path) -> None:
    words = ["--base", str(MAIN_JOB), *SPACE, "--out", str(out), "--trials", "5"]
    words += ["--subjects", f"{out.parent / 'first'}:dog"]
    both = forked(with_stand_in, words, told=[{"PYTHONPATH": str(ROOT)}] * 2)
    assert both.returncode == 0, both.stderr
    trials = open_study(out).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5
    assert len({str(trial.params) for trial in trials}) == 5
    assert both.stdout.count("trial ") >= 5
    with (out / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5


def test_poor_trials_are_stopped_between_subjects(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "STARTUP", 1)
    both = ("--subjects", f"{out.parent / 'first'}:dog", f"{out.parent / 'second'}:cat")
    assert search(out, "training.steps=100..1000,100", *both, "--trials", "8") == 0
    trials = open_study(out).get_trials()
    states = {trial.state.name for trial in trials}
    assert states == {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert trial.constraints, "also one that is stopped says how far off it is"
        folder = out / "runs" / sweep.digest_of(trial.params)
        if trial.state.name == "PRUNED":
            assert not (folder / "second.log").exists() and (folder / "first.log").exists()
        else:
            assert trial.user_attrs.keys() == {"first", "second"}


def test_failures_count_and_do_not_end_the_sweep(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(out, "training.steps=100..1000,100", f"seed={FAILS}", "--trials", "2") == 1
    assert "no trial was completed" in capsys.readouterr().out
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["fail", "fail"]
    assert "something is wrong" in rows[0]["failed"]


def test_nothing_passes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(out, "training.steps=900..1000,100", "--trials", "2") == 1
    said = capsys.readouterr().out
    assert "no trial passed the gates" in said and "training.steps=900" in said
    assert not (out / "winner.yaml").exists() and (out / "sweep.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.stepz=1..2"], "did you mean training.steps"),
        (["training.learning_rate=1e-5..5"], "must be at most 1"),
        (["prior.target=data|nothing"], "prior.target=nothing"),
        (["subject.class_noun=a|b"], "are set by the sweep"),
        (["training.steps=1..2", "evaluation=null"], "a sweep measures fidelity"),
        (["training.steps=1..2", "--subjects", "robot_nobody"], "robot_nobody"),
    ],
)
def test_bad_input(
    out: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(out, *words) == 2
    assert said in capsys.readouterr().err
    assert not (out / "runs").exists()


def test_storybook_subjects_by_name(out: Path) -> None:
    assert search(out, "training.steps=100..300", "--trials", "1", "--subjects", "car_comet") == 0
    (folder,) = (out / "runs").iterdir()
    (run,) = folder.glob("2*_car_comet")
    assert json.loads((run / "run.json").read_text())["class_noun"] == "car"
