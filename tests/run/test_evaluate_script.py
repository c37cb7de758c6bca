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

from ldm.checkpoint.files import sha256_of
from ldm.config import load_config
from ldm.errors import UserError
from ldm.evaluation import pictures
from ldm.evaluation.select import Choice
from ldm.run.export import describe
from ldm.run.measure import again, results
from scripts import export as export_script
from tests.workspace import Workspace, evaluated

pytestmark = pytest.mark.usefixtures("empty_plots")

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


def test_a_single_file_has_the_numbers_of_its_snapshot(
    script: ModuleType, runs: list[Path], tmp_path: Path
) -> None:
    out, file = tmp_path / "models", tmp_path / "robot.safetensors"
    words = ["--run", str(runs[0]), "--snapshot", "2", "--format", "single-file"]
    assert export_script.main([*words, "--out", str(file)]) == 0
    config = load_config([runs[0] / "config.yaml"], [])
    told = ["--base", config.model.base, "--pictures", config.subject.pictures]
    words = ["--model", str(file), *told, str(runs[0] / "config.yaml"), "--out", str(out)]
    assert script.main(words) == 0
    measured = result_of(out / "robot")
    assert measured["snapshots"] == {"2": result_of(runs[0])["snapshots"]["2"]}


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
    words = ["--model", str(models), str(runs[0] / "config.yaml"), "--out", str(out)]
    words += ["--base", str(place.base), "--pictures", str(place.pictures)]
    assert script.main(words) == 0
    told = json.loads((out / "compare.json").read_text("utf-8"))
    assert "a" in json.dumps(told) and (out / "a/evaluation.json").exists()
    drawn: list[Path] = []
    monkeypatch.setattr(pictures, "save_picture", lambda _, path, __: drawn.append(path))
    assert script.main(words) == 0
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


def test_models_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    sources = ["x/runs/m", "y/runs/m", "y/runs/other/export", "z/x-runs-m"]
    for source in sources:
        (tmp_path / source).mkdir(parents=True)
    found = again.names_of([*(str(tmp_path / source) for source in sources), "owner/name"])
    names = [*found.values()]
    assert len({*names}) == 5 and names[2] == "other" and names[-1] == "owner--name"
    assert names[0].endswith("x-runs-m") and names[1] == "y-runs-m"
    with pytest.raises(UserError, match="one model twice"):
        again.names_of([str(tmp_path / sources[0]), str(tmp_path / "x/../x/runs/m")])


def test_every_model_is_looked_at_before_the_first_is_measured(
    script: ModuleType, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", str(runs[0] / "export"), "owner/of/nothing", "--out", str(out)]
    assert script.main(words) == 2
    assert "owner/of/nothing: no such folder" in capsys.readouterr().err
    assert not out.exists()


def test_neither_a_run_nor_another_models_numbers_are_written_into(
    script: ModuleType, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = result_of(runs[0])
    export, name = str(runs[0] / "export"), runs[0].name
    assert script.main(["--model", export, "--out", str(runs[0].parent)]) == 2
    assert "which is a run" in capsys.readouterr().err
    assert result_of(runs[0]) == before
    taken = tmp_path / name / "evaluation/step-000300"
    taken.mkdir(parents=True)
    (taken / "pictures.json").write_text('{"fingerprint": "abc"}')
    assert script.main(["--model", export, "--out", str(tmp_path)]) == 2
    assert "numbers of another model (fingerprint abc" in capsys.readouterr().err


def test_an_export_that_was_moved_asks_for_what_lay_elsewhere(
    script: ModuleType,
    runs: list[Path],
    place: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "moved"
    shutil.copytree(runs[0] / "export", model)
    told = (model / "dreambooth.json").read_text("utf-8")
    assert str(place.folder) not in told and str(place.base) not in told
    about = json.loads(told)
    assert (about["run"], about["base"]) == (runs[0].name, place.base.name)
    digests = {path.name: sha256_of(path) for path in place.pictures.glob("?.png")}
    assert about["pictures"] == digests and "pictures_folder" not in about
    words = ["--model", str(model), "--out", str(tmp_path / "out")]
    assert script.main(words) == 2
    message = capsys.readouterr().err
    assert "--base" in message and "--pictures" in message and "--identifier" not in message
    other = tmp_path / "other"
    shutil.copytree(place.base, other)
    config = json.loads((other / "scheduler/scheduler_config.json").read_text("utf-8"))
    (other / "scheduler/scheduler_config.json").write_text(json.dumps(config | {"steps_offset": 1}))
    words += ["--base", str(other), "--pictures", str(place.pictures), str(runs[0] / "config.yaml")]
    assert script.main(words) == 2
    assert "is not the base that it was trained from" in capsys.readouterr().err


def test_a_moved_export_finds_what_is_named_from_the_working_folder(
    script: ModuleType, place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the default job, whose base and pictures lie in data/."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place.base, "base")
    own = Workspace(Path("work"), Path("base"))
    del own.settings["evaluation"]
    own.settings |= evaluated(Path("work"))
    monkeypatch.setattr(results, "select", lambda *_: Choice("subject/fidelity/oracle", 1, [], {}))
    run = own.train("relative")
    shutil.move(run / "export", "moved")
    told = json.loads(Path("moved/dreambooth.json").read_text("utf-8"))
    assert (told["base"], told["pictures_folder"]) == ("base", "work/pictures")
    assert script.main(["--model", "moved", str(run / "config.yaml"), "--out", "out"]) == 0
    assert result_of(Path("out/moved"))["snapshots"]["1"] == result_of(run)["snapshots"]["1"]
    (own.pictures / "0.png").write_bytes((own.pictures / "1.png").read_bytes())
    assert script.main(["--model", "moved", str(run / "config.yaml"), "--out", "out"]) == 2


def test_what_lies_below_the_working_folder_is_named_in_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text('{"pictures": {"0.png": "12ab"}}')
    pictures_of = describe.pictures_of
    own = pictures_of(tmp_path, Path("data/robot"))
    assert own == {"pictures": {"0.png": "12ab"}, "pictures_folder": "data/robot"}
    for elsewhere in (Path("../robot"), tmp_path / "robot"):
        assert pictures_of(tmp_path, elsewhere) == {"pictures": {"0.png": "12ab"}}
    names = [describe.base_name(one) for one in ("data/base", "owner/name", "/mnt/disk/base")]
    assert names == ["data/base", "owner/name", "base"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere"], "run folder nowhere does not exist"),
        (["--model", "nowhere/at/all"], "nowhere/at/all: no such folder"),
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
