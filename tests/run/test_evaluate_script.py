"""scripts/evaluate.py: runs measured again, models measured like runs, several side by side."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ldm.evaluation import pictures
from ldm.evaluation.select import Choice
from ldm.run import results
from tests.workspace import Workspace, evaluated

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    folder = tmp_path_factory.mktemp("evaluated")
    place = Workspace(folder, tiny_base_folder("v"))
    del place.settings["evaluation"]
    place.settings |= evaluated(folder) | {"training.learning_rate": 1e-2}
    return place


@pytest.fixture(scope="module")
def runs(place: Workspace) -> Iterator[list[Path]]:
    """Two runs whose first snapshot is chosen, here and whenever they are measured again."""
    with pytest.MonkeyPatch.context() as patch:

        def select(fidelity: str, base: object, snapshots: dict, *_: object) -> Choice:
            return Choice(fidelity, min(snapshots), [], {step: [] for step in snapshots})

        patch.setattr(results, "select", select)
        yield [place.train("a"), place.train("b", seed=1)]


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text("utf-8"))


def test_a_run_is_measured_again_where_something_is_missing(
    script: ModuleType, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / runs[0].name
    shutil.copytree(runs[0], run)
    before = result_of(run)
    shutil.rmtree(run / "evaluation" / "step-000002")
    for name in ("evaluation.json", "report.html", "metrics.csv"):
        (run / name).unlink()
    assert script.main(["--run", str(run)]) == 0
    assert result_of(run)["snapshots"] == before["snapshots"]
    assert (run / "report.html").exists() and (run / "metrics.csv").exists()
    said = capsys.readouterr().out
    assert "untouched base" in said and str(run / "report.html") in said
    assert script.main(["--run", str(run), "evaluation.class_images=8"]) == 0
    assert result_of(run)["images"]["class"] == 8
    assert result_of(run)["base"]["class/identity"]["n"] == 8


def test_a_run_that_was_not_to_be_evaluated_can_be(
    script: ModuleType, place: Workspace, tmp_path: Path
) -> None:
    run = Workspace(tmp_path, place.base).train("none")
    small = [f"{key}={value}" for key, value in evaluated(tmp_path).items()]
    assert script.main(["--run", str(run), *small]) == 0
    assert list(result_of(run)["snapshots"]) == ["1", "2"]


def test_two_runs_side_by_side(
    script: ModuleType, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    assert script.main(["--run", *map(str, runs), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= {"compare.html", "compare.json"}
    assert all(run.name in (out / "compare.html").read_text("utf-8") for run in runs)
    assert str(out / "compare.html") in capsys.readouterr().out


def test_an_exported_model_has_the_numbers_of_its_snapshot(
    script: ModuleType, runs: list[Path], tmp_path: Path
) -> None:
    """They are drawn and measured anew, from what the export alone says."""
    out = tmp_path / "models"
    assert script.main(["--model", str(runs[0] / "export"), "--out", str(out)]) == 0
    measured = result_of(out / runs[0].name)
    of_run = result_of(runs[0])
    assert measured["snapshots"] == {"1": of_run["snapshots"]["1"]}
    assert measured["base"] == of_run["base"]
    assert (out / runs[0].name / "report.html").exists()


def test_a_folder_of_models_is_all_of_them(
    script: ModuleType,
    runs: list[Path],
    place: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    for name, run in zip("ab", runs, strict=True):
        shutil.copytree(run / "export", models / name)
    assert script.main(["--model", str(models), "--out", str(out)]) == 0
    told = json.loads((out / "compare.json").read_text("utf-8"))
    assert "a" in json.dumps(told) and (out / "a/evaluation.json").exists()
    drawn: list[Path] = []
    monkeypatch.setattr(pictures, "save_picture", lambda _, path, __: drawn.append(path))
    assert script.main(["--model", str(models), "--out", str(out)]) == 0
    assert not drawn, "everything was there"


def test_a_model_that_says_nothing_of_itself(
    script: ModuleType, place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(place.base, model)
    words = ["--model", str(model), "--out", str(tmp_path / "out")]
    assert script.main(words) == 2
    message = capsys.readouterr().err
    for option in ("--base", "--identifier", "--class-noun", "--pictures"):
        assert option in message
    told = ["--base", str(place.base), "--identifier", "sks", "--class-noun", "robot"]
    told += ["--pictures", str(place.pictures), "sampling.steps=2"]
    told += [f"{key}={value}" for key, value in evaluated(tmp_path).items()]
    assert script.main([*words, *told]) == 0
    measured = result_of(tmp_path / "out" / "model")
    kept = measured["snapshots"]["0"]
    assert kept["subject/fidelity/oracle"] == measured["base"]["subject/fidelity/oracle"]
    assert kept["class/drift/oracle"]["value"] == pytest.approx(0, abs=1e-12), "it is the base"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere"], "run folder nowhere does not exist"),
        (["--model", "nowhere/at/all"], "--identifier"),
        (["--run", "RUN", "evaluation.imagse=3"], "evaluation.imagse"),
        (["--run", "RUN", "--device", "abacus"], "--device abacus cannot be used"),
        (["--model", "EMPTY"], "no model_index.json in it"),
    ],
)
def test_wrong_input_is_one_message(
    script: ModuleType,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    places = {"RUN": str(runs[0]), "EMPTY": str(tmp_path)}
    assert script.main([places.get(word, word) for word in words]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message


def test_other_pictures_than_it_was_trained_with_are_refused(
    script: ModuleType, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = Workspace(tmp_path, Path("unused")).pictures
    (others / "0.png").unlink()
    assert script.main(["--run", str(runs[0]), f"subject.pictures={others}"]) == 2
    assert "pictures gone: 0.png" in capsys.readouterr().err
