"""Runs side by side: scores as they are, differences picture by picture, and when they are not."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ldm.errors import UserError
from ldm.evaluation.compare import (
    Difference,
    compare,
    comparison_table,
    independent,
)
from ldm.evaluation.measured import read_measured, write_measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.report.side_by_side import write_comparison
from tests.evaluation.reported import CLASS, UNRELATED, make_run, score
from tests.evaluation.test_report import change, keep_few, read_page

FIDELITY, IDENTITY, DRIFT = "subject/fidelity/oracle", "subject/identity", "class/drift/oracle"
PROMPTS = tuple(f"a drawing of sks robot number {number}" for number in range(6))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs about the same; the pictures of the second are better by 0.1 to 0.16."""
    made = []
    for name, better in (("first", 0.0), ("second", 0.1)):
        run = make_run(
            tmp_path,
            name,
            steps=(100, 200),
            chosen=100,
            prompts=(PROMPTS, CLASS, UNRELATED),
            better=better,
        )
        change(run, keep_few)
        for folder in (run / "evaluation").glob("step-*"):
            vary(folder, better)
        made.append(run)
    return made


def vary(folder: Path, better: float) -> None:
    """Make the gain differ from prompt to prompt."""
    measured = read_measured(folder)
    for row in measured.rows:
        if row["about"] == "subject" and better:
            row["fidelity/oracle"] += 0.01 * PROMPTS.index(row["prompt"])
    write_measured(measured)


def edit(run: Path, **values: Any) -> None:
    change(run, lambda content: content.update(values))


def test_differences_are_paired_by_prompt_and_seed_on_the_reporting_half(runs: list[Path]) -> None:
    first, second = compare(runs).methods
    assert (first.key, second.key, second.chosen) == ("100", "100", True)
    assert first.differences == {}
    found = second.differences[FIDELITY]
    gains = [0.1 + 0.01 * place for place in range(6) if place % 2 == 1]  # the reporting half
    assert found.paired
    assert found.n == 3, "prompts"
    assert found.value == pytest.approx(np.mean(gains))
    assert 0 < found.low < min(gains) < found.value < max(gains) < found.high, "few prompts"
    assert found.verdict(FIDELITY) == "better"
    assert second.differences[IDENTITY] == Difference(0.0, 0.0, 0.0, 3, True)
    assert second.differences[IDENTITY].verdict(IDENTITY) == ""


def test_what_no_picture_has_is_compared_as_independent(runs: list[Path]) -> None:
    _, second = compare(runs).methods
    found = second.differences[DRIFT]  # the rows do not hold it
    assert (found.paired, found.value) == (False, 0.0)


def test_interval_of_independent_scores() -> None:
    a, b = Score(value=0.8, low=0.7, high=0.85, n=30), Score(value=0.5, low=0.44, high=0.54, n=20)
    low = 0.3 - ((0.8 - 0.7) ** 2 + (0.54 - 0.5) ** 2) ** 0.5
    high = 0.3 + ((0.85 - 0.8) ** 2 + (0.5 - 0.44) ** 2) ** 0.5
    found = independent(a, b)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.3, low, high))
    assert (found.n, found.paired) == (20, False)
    assert independent(a, Score(value=0.5, low=float("nan"), high=0.6, n=2)) is None
    assert Difference(-0.2, -0.3, -0.1, 9, False).verdict(DRIFT) == "better", "less drift"
    assert Difference(-0.2, -0.3, 0.1, 9, False).verdict(DRIFT) == ""


@pytest.mark.parametrize(
    ("why", "values"),
    [
        ("other subjects", {"subject": {"identifier": "sks", "class_noun": "dog"}}),
        ("other bases", {"base_fingerprint": "fedcba"}),
    ],
)
def test_other_subjects_and_bases_are_not_paired(
    runs: list[Path], why: str, values: dict[str, Any]
) -> None:
    edit(runs[1], **values)
    comparison = compare(runs)
    assert comparison.notes == [f"second and first: differences are unpaired: {why}"]
    changes = comparison.methods[1].differences
    assert changes[FIDELITY] == independent(
        comparison.methods[1].scores[FIDELITY], comparison.methods[0].scores[FIDELITY]
    )
    assert not any(found.paired for found in changes.values())


def test_other_pictures_compared_with_other_seeds_and_missing_rows(
    runs: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[1], other := tmp_path / "other")
    for folder in (other / "evaluation").glob("step-*"):
        measured = read_measured(folder)
        write_measured(type(measured)(measured.scores, measured.rows, {"heldout": "cc"}, folder))
    assert compare([runs[0], other]).notes == [
        "other and first: differences are unpaired: other subjects"
    ]
    shutil.copytree(runs[1], seeds := tmp_path / "seeds")
    for folder in (seeds / "evaluation").glob("step-*"):
        measured = read_measured(folder)
        for row in measured.rows:
            row["seed"] += 5000
        write_measured(measured)
    assert "no prompt and seed in common" in compare([runs[0], seeds]).notes[0]
    for path in (runs[1] / "evaluation").glob("step-*/scores.json"):
        path.unlink()
    note = compare(runs).notes[0]
    assert "unpaired" in note, note


def test_what_was_not_alike_is_said(runs: list[Path]) -> None:
    edit(runs[1], sampling={"sampler": "ddim"}, precision="bf16-mixed", chosen=None)
    assert compare(runs).notes == [
        "second: no snapshot is chosen, the last one is shown",
        "second and first: drawn or measured with other sampling, precision",
    ]


def test_files_say_the_same_as_the_runs(runs: list[Path], tmp_path: Path) -> None:
    nothing = {"value": float("nan"), "low": None, "high": None, "n": 0}
    change(runs[1], lambda content: content["snapshots"]["100"].update({IDENTITY: nothing}))
    change(
        runs[1],
        lambda content: content["snapshots"]["100"].update(
            {"extra": score(0.1) | {"low": float("nan")}}
        ),
    )
    comparison = compare(runs)
    paths = write_comparison(comparison, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.html", "compare.json", "compare.csv"]
    before = [path.read_bytes() for path in paths]
    assert [
        path.read_bytes() for path in write_comparison(compare(runs), tmp_path / "out")
    ] == before

    expected = {
        (run.name, metric): found["value"]
        for run in runs
        for metric, found in json.loads((run / "evaluation.json").read_text())["snapshots"][
            "100"
        ].items()
        if (run.name, metric) != ("second", IDENTITY)
    }
    content = json.loads(paths[1].read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["against"] == "first"
    assert {
        (method["name"], metric): found["value"]
        for method in content["methods"]
        for metric, found in method["scores"].items()
    } == expected
    assert content["methods"][1]["differences"][FIDELITY]["paired"] is True
    with paths[2].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["metric"]): float(row["value"]) for row in rows} == expected
    page = read_page(paths[0])
    shown = {
        (cell.attributes["data-column"], cell.attributes["data-metric"]): float(
            cell.attributes["data-value"] or "nan"
        )
        for cell in page.cells
        if "data-value" in cell.attributes
    }
    assert shown == expected
    text = paths[0].read_text(encoding="utf-8")
    assert re.findall(r"https?:|<script|<link", text) == []
    assert "better" in page.text


def test_names_are_told_apart_and_no_markup(tmp_path: Path) -> None:
    evil = "[red]<script>x"
    runs = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        runs.append(make_run(tmp_path / parent, evil, steps=(100,), chosen=100))
        change(runs[-1], keep_few)
    comparison = compare(runs)
    assert [method.name for method in comparison.methods] == [f"a/{evil}", f"b/{evil}"]
    html, *_ = write_comparison(comparison, tmp_path)
    page = read_page(html)
    assert all(tag != "script" for tag, _ in page.tags)
    assert f"b/{evil}" in page.text
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    console.print(comparison_table(comparison))
    text = console.export_text()
    assert f"a/{evil}" in text
    assert "recognised as the subject" in text


def test_wrong_input_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        compare(runs[:1])
    with pytest.raises(UserError, match="nowhere does not exist"):
        compare([runs[0], tmp_path / "nowhere"])
    (runs[1] / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"second is not evaluated; run: python scripts/evaluate"):
        compare(runs)
