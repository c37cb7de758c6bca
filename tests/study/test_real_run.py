"""A benchmark and a sweep with main.py itself, on a tiny random base."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import scripts.benchmark
import scripts.sweep
from tests.workspace import MAIN_JOB

TINY = [
    "training.steps=2",
    "training.precision=fp32",
    "training.batch=2",
    "prior.count=2",
    "prior.batch=2",
    "prior.steps=2",
    "samples.every=0",
    "sampling.steps=2",
    "evaluation.oracle=tests.evaluation.fake:BrightnessOracle",
    "evaluation.class_images=4",
    "evaluation.unrelated_images=1",
    "evaluation.steps=2",
    "trainer.accelerator=cpu",
]


@pytest.fixture
def words(
    tmp_path: Path, tiny_base_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    places = {"evaluation.root": "base", "data.cache": "cache", "prior.root": "prior"}
    own = [f"{key}={tmp_path / name}" for key, name in places.items()]
    return ["--base", str(MAIN_JOB), *TINY, f"model.base={tiny_base_folder('eps')}", *own]


def test_benchmark(tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["storybench", "--subjects", "robot_mint", "--out", str(out), *words]
    assert scripts.benchmark.main(given) == 0, capfd.readouterr().err
    content = json.loads((out / "table.json").read_text())
    (row,) = content["rows"]
    metrics = {"subject/fidelity/oracle", "class/kid/oracle", "class/change/light"}
    assert metrics < row["scores"].keys() and "torch" in content["methods"]["default"]["versions"]
    assert "class/kid/oracle" in row["floor"] and "subject/fidelity/oracle" in row["ceiling"]
    assert (out / "sheet.png").exists()


def test_sweep(tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    space = ["training.learning_rate=1e-5..1e-3,log", "--trials", "1"]
    given = [*words, *space, "--subjects", "robot_mint", "--out", str(out)]
    assert scripts.sweep.main(given) in (0, 1), capfd.readouterr().err
    table = (out / "trials.csv").read_text().splitlines()
    assert len(table) == 2 and ",complete," in table[1]
