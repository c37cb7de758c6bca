"""From runs to tables: means over subjects, several methods, what was not chosen, what failed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoint.files import write_sealed
from ldm.evaluation.metrics import Score
from ldm.evaluation.pictures import Asked, files_of
from ldm.study.collect import METHOD, Row, collect, means
from ldm.study.sheet import write_sheet
from ldm.study.table import write_tables


def score(value: float) -> Score:
    return Score(value=value, low=value - 0.1, high=value + 0.1, n=24)


def a_row(method: str, subject: str, value: float, base: float, **more: Score) -> Row:
    scores = {"subject/identity": score(value), **more}
    bases = {"subject/identity": score(base), "only/base": score(1.0)}
    return Row(method, subject, "dog", Path("run"), 300, True, "", 1.0, scores, bases)


def a_run(
    out: Path, method: str, subject: str, value: float, chosen: int | None, base: float = 0.1
) -> Path:
    """A finished run with two snapshots; at 100 the value is half."""
    folder = out / "runs" / method
    run = folder / f"2026-01-01T00-00-00_{subject}"
    run.mkdir(parents=True)
    facts = {
        "class_noun": "dog",
        "identifier": "sks",
        "config": {"subject.pictures": str(out / "pictures")},
    }
    (run / "run.json").write_text(json.dumps(facts))
    snapshots = {str(s): {"subject/identity": score(value * s / 200)} for s in (100, 200)}
    evaluation = {
        "base": {"subject/identity": score(base)},
        "snapshots": snapshots,
        "choosing": {"snapshots": {}},
        "chosen": chosen,
        "reasons": ["why"],
        "gates": {},
        "ceiling": {},
        "floor": {"subject/identity": score(0.03)},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    attempts = [{"seconds": 10.0, "tail": []}, {"seconds": 20.5, "tail": []}]
    (folder / f"{subject}.json").write_text(json.dumps({"attempts": attempts}))
    (folder / METHOD).write_text(json.dumps({"command": ["python", "x"], "evaluation": {"a": 1}}))
    return run


def test_means_are_over_subjects_with_a_bootstrap_over_subjects() -> None:
    values, bases = [0.9, 0.4, 0.7, 0.8], [0.1, 0.2, 0.0, 0.1]
    rows = [a_row("m", f"s{i}", *pair) for i, pair in enumerate(zip(values, bases, strict=True))]
    found = means(rows)
    assert list(found) == ["subject/identity"], "what only the base has is no result"
    parts = found["subject/identity"]
    assert parts["value"]["value"] == pytest.approx(np.mean(values)) and parts["value"]["n"] == 4
    assert parts["base"]["value"] == pytest.approx(np.mean(bases))
    gains = np.subtract(values, bases)
    assert parts["difference"]["value"] == pytest.approx(gains.mean())
    rng = np.random.default_rng(7)
    drawn = [rng.choice(gains, 4).mean() for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert parts["difference"]["low"] == pytest.approx(low, abs=0.03)
    assert parts["difference"]["high"] == pytest.approx(high, abs=0.03)


def test_a_metric_that_some_lack_says_how_many_have_it() -> None:
    extra = {"subject/setting": score(0.5)}
    rows = [a_row("m", "a", 0.9, 0.1), a_row("m", "b", 0.8, 0.1, **extra)]
    found = means(rows)["subject/setting"]
    assert found["value"]["n"] == 1 and found.keys() == {"value"}, "the base has none"
    rows[1].base["subject/setting"] = score(0.4)
    assert means(rows)["subject/setting"]["difference"]["value"] == pytest.approx(0.1)


def test_rows_take_the_chosen_snapshot_or_say_that_there_is_none(tmp_path: Path) -> None:
    a_run(tmp_path, "m", "a", 0.8, 100)
    a_run(tmp_path, "m", "b", 0.6, None)
    rows, failures = collect(tmp_path)
    assert not failures
    assert [(r.subject, r.step, r.chosen) for r in rows] == [("a", 100, True), ("b", 200, False)]
    assert [r.scores["subject/identity"]["value"] for r in rows] == [0.4, 0.6]
    assert rows[0].seconds == 30.5, "of all attempts"


def test_tables_of_two_methods(tmp_path: Path) -> None:
    for subject, value in (("a", 0.8), ("b", 0.6)):
        a_run(tmp_path, "one", subject, value, 200)
        a_run(tmp_path, "two", subject, value / 2, None if subject == "b" else 200)
    failed = {"attempts": [{"seconds": 1, "tail": ["why it failed"]}]}
    (tmp_path / "runs" / "two" / "c.json").write_text(json.dumps(failed))
    write_tables(tmp_path, "storybench", ["A note."])

    content = json.loads((tmp_path / "table.json").read_text())
    one = content["methods"]["one"]
    assert one["means"]["subject/identity"]["value"]["value"] == pytest.approx(0.7)
    assert one["means"]["subject/identity"]["difference"]["value"] == pytest.approx(0.6)
    assert one["means"]["subject/identity"]["floor"]["value"] == pytest.approx(0.03)
    assert one["run_seconds"] == 61.0 and one["command"] == ["python", "x"]
    assert content["methods"]["two"]["with_a_chosen_snapshot"] == 1
    assert content["failures"] == [{"method": "two", "subject": "c", "tail": ["why it failed"]}]
    assert content["rows"][0]["run"] == "runs/one/2026-01-01T00-00-00_a"

    text = (tmp_path / "table.md").read_text()
    assert "A note." in text and "one (2 of 2 chosen)" in text and "two (1 of 2 chosen)" in text
    assert "| two | b | none (200) | 0.30 (0.10) |" in text
    assert "- two, c: why it failed" in text

    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    picked = [x for x in lines if x["method"] == "two" and x["subject"] == "b"]
    assert [(x["model"], x["step"], float(x["value"])) for x in picked] == [
        ("base", "", 0.1),
        ("last", "200", 0.3),
    ]


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    a_run(tmp_path, "one", "a", 0.8, 200)
    a_run(tmp_path, "two", "b", 0.8, 200)
    other = tmp_path / "runs" / "two" / METHOD
    other.write_text(json.dumps({"evaluation": {"a": 2}}))
    write_tables(tmp_path, "x", [])
    text = (tmp_path / "table.md").read_text()
    assert "different subjects" in text and "measured differently: a" in text


def test_runs_measured_with_other_instruments_are_told_of(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, method, "a", 0.8, 200) for method in ("one", "two")]

    def warnings() -> str:
        write_tables(tmp_path, "x", [])
        return (tmp_path / "table.md").read_text()

    assert "with different" not in warnings()
    for place, run in enumerate(runs):
        base = run / "evaluation" / "base"
        base.mkdir(parents=True)
        about = {"extractors": {"dino": f"network {place}"}}
        write_sealed(base / "scores.json", {"about": about, "pictures": 0, "scores": {}})
    assert "different feature extractors" in warnings() and "different oracles" not in warnings()
    for place, run in enumerate(runs):
        found = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps(found | {"oracle": {"x": place}}))
    assert "different oracles" in warnings()


def test_the_sheet_shows_a_row_per_subject(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (300, 200), "blue").save(tmp_path / "pictures" / "0.png")
    asked = [Asked("subject", f"a sks dog {i // 2}", i, {}) for i in range(24)]
    asked += [Asked("class", "a dog", i, {}) for i in range(5)]
    for subject in ("a", "b", "gone"):
        run = a_run(tmp_path, "m", subject, 0.5, 200)
        folder = run / "evaluation" / "step-000200"
        if subject != "gone":
            for kind in ("subject", "class"):
                (folder / kind).mkdir(parents=True)
            for i, name in enumerate(files_of(asked)):
                Image.new("RGB", (64, 64), (10 * (i % 24), 0, 0)).save(folder / name)
            about = {"asked": [vars(one) for one in asked]}
            (folder / "pictures.json").write_text(json.dumps(about))
    write_sheet(collect(tmp_path)[0], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        columns = 1 + 6 + 2
        left = round(128 * 1.5) + 6
        assert sheet.width == left + columns * (128 + 6) - 6
        assert sheet.getpixel((left + 64, sheet.height - 64)) == (0, 0, 255)
        places = [(left + 134 * k + 64, sheet.height - 64) for k in range(1, 7)]
        reds = [sheet.convert("RGB").getchannel("R").getpixel(place) for place in places]
    assert reds == [0, 40, 80, 120, 160, 200], "the first picture of every second prompt"
    assert "gone" in caplog.text
