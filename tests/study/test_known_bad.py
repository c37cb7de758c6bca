"""Known-bad runs: what is declared, how it is checked, and a short form of them on the base."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scripts.known_bad
from ldm.config import load_config
from ldm.evaluation.gates import Gate
from ldm.evaluation.measured import Measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.pictures import Asked, files_of, read_asked
from ldm.storybook import SUBJECTS
from ldm.study.known_bad import (
    DEFAULT,
    MADE,
    VARIANTS,
    Result,
    checks,
    copy_training_pictures,
    differences,
    moved,
    pooled,
    words_for,
)
from ldm.study.known_bad_table import write_known_bad

ROOT = Path(__file__).parents[2]
METRIC = "subject/fidelity/oracle"


def result(values: list[float], prompts: list[str], accepted: bool = True, **more: float) -> Result:
    """A snapshot with a fidelity per picture of the reporting half, and others of the choosing."""
    rows = [
        {"file": f"{i}.png", "about": "subject", "half": "reporting", "prompt": prompt, "seed": i}
        | {"fidelity/oracle": value}
        for i, (value, prompt) in enumerate(zip(values, prompts, strict=True))
    ]
    rows += [{**row, "half": "choosing", "fidelity/oracle": 5.0 * i} for i, row in enumerate(rows)]
    value = float(np.mean(values))
    scores = {METRIC: Score(value=value, low=value - 0.3, high=value + 0.3, n=len(values))}
    for name, one in more.items():
        metric = name.replace("__", "/")
        scores[metric] = Score(value=one, low=one - 0.03, high=one + 0.04, n=5)
    halves = {"choosing": scores, "reporting": scores}
    measured = Measured(halves, rows, {}, Path("nowhere"))
    broken = [] if accepted else [Gate("class/identity", False, 0.5, 0.05, "fewer steps")]
    return Result(measured, measured, accepted, broken)


ASKED = ["a", "a", "b", "b", "c", "c"]


def test_what_was_asked_alike_is_compared_picture_by_picture() -> None:
    before = [0.1, 0.9, 0.2, 0.5, 0.7, 0.3]
    new, old = result([v + 0.2 for v in before], ASKED), result(before, ASKED)
    score = moved(METRIC, new, old)
    assert score is not None and score["value"] == pytest.approx(0.2)
    assert score["high"] - score["low"] < 1e-9, "each by the same"


def test_what_was_asked_otherwise_is_compared_as_independent() -> None:
    new, old = result([0.5] * 6, ["x"] * 6), result([0.1] * 6, ASKED)
    score = moved(METRIC, new, old)
    assert score is not None and score["value"] == pytest.approx(0.4)
    assert score["high"] - score["value"] == pytest.approx(math.hypot(0.3, 0.3))
    assert moved("class/change/colour", new, old) is None
    whole = moved(
        "class/kid/oracle",
        result([0.5] * 6, ASKED, class__kid__oracle=0.5),
        result([0.5] * 6, ASKED, class__kid__oracle=0.1),
    )
    assert whole is not None and whole["value"] == pytest.approx(0.4)
    assert whole["high"] - whole["value"] == pytest.approx(math.hypot(0.035, 0.035))


def test_differences_are_pooled_over_subjects() -> None:
    scores = [Score(value=v, low=v - h, high=v + h, n=9) for v, h in ((0.2, 0.3), (0.4, 0.4))]
    found = pooled(scores)
    assert found["value"] == pytest.approx(0.3)
    assert found["high"] - found["value"] == pytest.approx(0.25)
    results = {
        DEFAULT: {"s": result([0.8] * 6, ASKED), "t": result([0.6] * 6, ASKED)},
        "short": {"s": result([0.1] * 6, ASKED)},
    }
    assert differences(results, "short", DEFAULT)[METRIC]["value"] == pytest.approx(-0.7)


def test_expectations_and_verdicts_are_checked(tmp_path: Path) -> None:
    good, bad = [0.8] * 6, [0.1] * 6
    results = {
        DEFAULT: {"s": result(good, ASKED, subject__identity=0.9)},
        "base": {"s": result(bad, ASKED, accepted=False, subject__identity=0.0)},
    }
    facts = {"command": "x", "date": "now", "cores": 2, "subjects": ["s"]}
    assert [row["holds"] for row in checks(results)] == [True] * 4
    assert write_known_bad(tmp_path, results, facts, [])
    content = json.loads((tmp_path / "known_bad.json").read_text())
    run = content["variants"]["base"]["runs"]["s"]
    assert not run["accepted"] and run["as_declared"]
    assert run["broken_gates"][0]["name"] == "class/identity"
    difference = content["variants"][DEFAULT]["difference_to_base"][METRIC]["value"]
    assert difference == pytest.approx(0.7)
    text = (tmp_path / "known_bad.md").read_text()
    assert "NO" not in text and "class/identity (1)" in text

    results["base"] = {"s": result(bad, ASKED, accepted=True, subject__identity=0.0)}
    assert not write_known_bad(tmp_path, results, facts, []), "the selector took it"
    assert "accepted for 1 of 1 | NO" in (tmp_path / "known_bad.md").read_text()
    results["base"] = {"s": result(good, ASKED, accepted=False, subject__identity=0.0)}
    assert not write_known_bad(tmp_path, results, facts, []), "the metric did not move"
    results["base"] = {"s": result(bad, ASKED, accepted=False, subject__identity=0.0)}
    assert not write_known_bad(tmp_path, results, facts, ["long, s"])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in MADE])
def test_variants_are_configurations(name: str) -> None:
    words = words_for(name, 300, "cat", ["a drawing of [V] in the snow", "a drawing of [V]"])
    config = load_config([ROOT / "configs" / "dreambooth.yaml"], words)
    steps = {"long": 3000, "short": 30}.get(name, 300)
    assert config.training.steps == config.snapshots.every == steps
    assert (config.prior is None) == (name == "no_prior")
    assert (config.subject.class_noun == "cat") == (name == "wrong_noun")
    assert config.model.train_text_encoder == (name != "frozen_text")
    assert config.evaluation is not None
    if name == "no_noun":
        assert config.subject.prompt == ["a drawing of [V]"]
        assert config.evaluation.prompts == ["a drawing of [V] in the snow", "a drawing of [V]"]


def test_no_caption_stands_beside_its_picture(tmp_path: Path) -> None:
    subject = SUBJECTS["robot_mint"]
    right = scripts.known_bad.pictures_of(subject, "captions", tmp_path)
    for _ in range(2):  # also when it is made again
        wrong = scripts.known_bad.pictures_of(subject, "shuffled", tmp_path)
        told = [{p.name: p.read_text() for p in folder.glob("*.txt")} for folder in (right, wrong)]
        assert len(told[0]) == 5 and sorted(told[0].values()) == sorted(told[1].values())
        assert all(told[0][name] != text for name, text in told[1].items())
    for name in ("00.png", "heldout/03.png", "heldout/03.txt"):
        assert (right / name).read_bytes() == (wrong / name).read_bytes()
    plain = scripts.known_bad.pictures_of(subject, "long", tmp_path)
    assert not list(plain.glob("*.txt"))


def test_copies_are_the_training_pictures(tmp_path: Path) -> None:
    asked = [Asked("subject", "p", i, {}) for i in range(3)] + [Asked("class", "c", 0, {})]
    (tmp_path / "standard").mkdir()
    about = {"asked": [vars(one) for one in asked], "fingerprint": "base"}
    (tmp_path / "standard" / "pictures.json").write_text(json.dumps(about))
    training = []
    for name in ("red", "green"):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{name}.png")
        training.append(tmp_path / f"{name}.png")
    copy_training_pictures(tmp_path / "standard", tmp_path / "made", training)
    assert read_asked(tmp_path / "made") == asked
    made = [(tmp_path / "made" / name).read_bytes() for name in files_of(asked)]
    red, green = (path.read_bytes() for path in training)
    assert made == [red, green, red, green]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--subjects", "robot_mint", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert scripts.known_bad.main([*words, "--variants", "worse"]) == 2
    assert "known are default, base" in capsys.readouterr().err
    assert scripts.known_bad.main([*words, "evaluation.oracle=null", "evaluation.dino=x/y"]) == 2
    assert "judged by it" in capsys.readouterr().err


@pytest.mark.slow
def test_short_form_on_the_embedded_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without class images the class becomes the subject; copies copy; the base has learnt nothing.

    Minutes, as `python scripts/known_bad.py` takes hours: fewer steps and pictures.
    """
    monkeypatch.chdir(ROOT)
    words = ["--subjects", "robot_mint", "--variants", "default", "base", "no_prior", "copies"]
    words += ["--out", str(tmp_path), "--runs", str(tmp_path / "runs")]
    words += ["training.steps=200", "evaluation.class_images=48", "evaluation.images=2"]
    words += ["evaluation.unrelated_images=1", "evaluation.steps=8", f"prior.root={tmp_path}/prior"]
    words += [f"evaluation.root={tmp_path}/base", f"data.cache={tmp_path}/cache"]
    scripts.known_bad.main(words)
    content = json.loads((tmp_path / "known_bad.json").read_text())
    assert not content["failures"]
    accepted = {
        name: content["variants"][name]["runs"]["robot_mint"]["accepted"]
        for name in ("base", "no_prior", "copies")
    }
    assert not any(accepted.values()), (tmp_path / "known_bad.md").read_text()
    # That the oracle accepts the subject takes all the steps, a distribution of colours 500
    # pictures, and settings more than three prompts; the rest shows in the short form.
    long = ("subject/identity", "class/change/colour", "subject/setting")
    rows = [row for row in content["checks"] if row["metric"] not in long]
    assert len(rows) >= 9
    failed = [row for row in rows if not row["holds"]]
    assert not failed, (tmp_path / "known_bad.md").read_text()
