"""`main.py` from the command line to the run folder: what it makes, resumes and refuses."""

import csv
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from ldm.sampling import prior
from ldm.training import DreamBoothModule
from tests.workspace import Workspace, difference, weights

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    """For tests that leave pictures and base as they are."""
    return Workspace(tmp_path_factory.mktemp("shared"), tiny_base_folder("eps"))


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run; expect status 2 and one message, which is returned."""

    def run(place: Workspace, *more: str, **settings: object) -> str:
        capsys.readouterr()
        assert place.main(*more, **settings) == 2
        message = capsys.readouterr().err
        assert message.count("error: ") == 1 and "Traceback" not in message
        assert not list(place.logs.glob("*")), "nothing is left behind"
        return message

    return run


# --- a run ----------------------------------------------------------------------------------------


def test_run_folder(shared: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = shared.train("whole", samples__every=2)
    assert str(run / "samples") in capsys.readouterr().out
    for name in ("config.yaml", "run.json", "metrics.csv", "resume.ckpt"):
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents.*"))
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "step-000000.png",
        "step-000002.png",
    ]
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert {"base", "base_fingerprint", "pictures", "identifier", "class_noun"} < facts.keys()
    assert {"versions", "command", "seed"} < facts.keys()
    assert set(facts["pictures"]) == {"0.png", "1.png", "2.png"}
    assert all(len(digest) == 64 for digest in facts["pictures"].values())
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2]
    assert all(float(row["loss/prior"]) > 0 for row in rows), "the prior loss is logged"


def test_snapshots_hold_what_is_trained(shared: Workspace) -> None:
    both = shared.train("both")
    files = {path.name for path in (both / "snapshots/step-000002").iterdir()}
    assert files == {"unet.safetensors", "text_encoder.safetensors", "manifest.json"}
    alone = shared.train("alone", model__train_text_encoder="false")
    files = {path.name for path in (alone / "snapshots/step-000002").iterdir()}
    assert files == {"unet.safetensors", "manifest.json"}
    assert any((weights(both, 1)[k] != weights(both, 2)[k]).any() for k in weights(both, 1))


def test_config_of_a_run_repeats_it(shared: Workspace) -> None:
    first = shared.train("first")
    assert main.main(["--base", str(first / "config.yaml"), "--name", "again"]) == 0
    (again,) = shared.logs.glob("*_again")
    assert difference(first, again) == 0


def test_class_images_are_made_topped_up_and_all_used(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.train("three")
    (folder,) = (place.folder / "prior").iterdir()
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(before) == 3
    place.train("five", prior__count=5)
    assert len(list(folder.glob("*.png"))) == 5
    assert all((folder / name).read_bytes() == data for name, data in before.items())
    names = trained_on(place, "many", monkeypatch, prior__count=5)
    assert names == {f"{number:05d}.png" for number in range(5)}, "every one is used"
    names = trained_on(place, "few", monkeypatch, prior__count=3)
    assert names == {f"{number:05d}.png" for number in range(3)}, "no more than were asked for"


def trained_on(
    place: Workspace, name: str, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> set[str]:
    """Run; the names of the class images in the batches."""
    seen: set[str] = set()
    step = DreamBoothModule.on_before_batch_transfer

    def spy(module: DreamBoothModule, batch: Any, dataloader_idx: int) -> Any:
        seen.update(itertools.compress(batch["names"], batch["is_prior"].tolist()))
        return step(module, batch, dataloader_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DreamBoothModule, "on_before_batch_transfer", spy)
        place.train(name, training__steps=3, **settings)
    return seen


def test_cached_latents_change_nothing(place: Workspace) -> None:
    """Not by a bit: whether pictures were just encoded or read from the cache."""
    cold, warm = place.train("cold"), place.train("warm")
    assert difference(cold, warm) == 0


def test_own_class_pictures(place: Workspace) -> None:
    run = place.train("own", prior__folder=place.pictures)
    assert not (place.folder / "prior").exists()
    assert difference(run, place.train("made")) > 0


def test_resume_is_exact(place: Workspace) -> None:
    straight = place.train("straight", training__steps=4, samples__every=2)
    run = place.train("resumed", training__steps=2, samples__every=2)
    assert main.main(["--resume", str(run), "training.steps=4", "samples.every=1"]) == 0
    assert difference(straight, run, step=4) == 0
    assert difference(straight, run, step=4, part="text_encoder") == 0
    with (run / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]
    assert "steps: 4" in (run / "config.yaml").read_text(encoding="utf-8")


def test_resume_starts_over_where_nothing_was_saved(place: Workspace) -> None:
    run = place.train("begun")
    expected = weights(run, 2)
    for path in run.iterdir():
        if path.name not in ("config.yaml", "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main.main(["--resume", str(run)]) == 0
    assert all(torch.equal(expected[key], value) for key, value in weights(run, 2).items())


def test_interrupted_while_making_class_images(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = prior._save

    def save_then_interrupt(*arguments: Any) -> None:
        save(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(prior, "_save", save_then_interrupt)
        run = place.train("stopped")
    assert f"--resume {run}" in caplog.text
    (folder,) = (place.folder / "prior").iterdir()
    assert 1 <= len(list(folder.glob("*.png"))) < 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main.main(["--resume", str(run)]) == 0
    assert difference(run, place.train("whole")) == 0


def test_resume_refuses_other_values(
    place: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = place.train("begun", training__steps=1)
    assert main.main(["--resume", str(run), "training.batch=4", "seed=1", "training.steps=2"]) == 2
    message = capsys.readouterr().err
    assert "training.batch=4, was 2" in message and "seed=1, was 0" in message
    assert "training.steps" not in message
    assert main.main(["--resume", str(tmp_path / "none")]) == 2
    assert main.main(["--resume", str(place.pictures)]) == 2
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(facts | {"base_fingerprint": "0"}), encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=2"]) == 2
    assert "model.base" in capsys.readouterr().err


def test_two_processes_share_the_work(place: Workspace) -> None:
    """Each makes its share of the class images; together they train on what one process does."""
    settings = {"prior__count": 5, "trainer__strategy": "ddp", "trainer__devices": 2}
    command = [sys.executable, str(ROOT / "main.py"), *place.words("--name", "two", **settings)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    (two,) = place.logs.glob("*_two")
    (folder,) = (place.folder / "prior").iterdir()
    assert len(list(folder.glob("*.png"))) == 5
    assert "class images made: 3" in made.stderr and "class images made: 2" in made.stderr
    one = place.train("one", prior__count=5)
    assert difference(one, two) < 2e-3, "but for rounding"


def test_wandb_offline(place: Workspace) -> None:
    pytest.importorskip("wandb")
    run = place.train("wandb", logger__wandb="true", logger__offline="true", samples__every=2)
    assert list((run / "wandb").glob("offline-run-*"))


# --- the plan -------------------------------------------------------------------------------------


def test_dry_run_says_what_would_happen(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.main("--dry-run", training__steps=6) == 0
    plan = capsys.readouterr().out
    assert "train_text_encoder: true" in plan, "the merged config"
    assert "0.png, 1.png, 2.png" in plan
    assert "'a drawing of sks robot' -> a_ drawing_ of_ sks_ robot_ (5 tokens)" in plan
    assert "epochs        4.0" in plan
    assert "3 to make" in plan
    for said in ("trained", "frozen", "VAE", "disk", "memory", "text encoder"):
        assert said in plan
    assert {path.name for path in place.folder.iterdir()} == {"pictures"}, "nothing is made"
    place.train("run")
    capsys.readouterr()
    assert place.main("--dry-run") == 0
    assert "0 to make" in capsys.readouterr().out, "the plan finds what the run has made"
    assert place.main("--dry-run", prior="null") == 0
    assert "none (prior: null)" in capsys.readouterr().out


# --- bad input ------------------------------------------------------------------------------------


def test_picture_folders(place: Workspace, refused: Callable[..., str]) -> None:
    missing = place.folder / "missing"
    assert str(missing) in refused(place, subject__pictures=missing)
    missing.mkdir()
    assert str(missing) in refused(place, subject__pictures=missing)
    (missing / "notes.md").write_text("no picture", encoding="utf-8")
    assert "notes.md" in refused(place, subject__pictures=missing)
    assert "notes.md" in refused(place, prior__folder=missing)


def test_unreadable_pictures(place: Workspace, refused: Callable[..., str]) -> None:
    from PIL import Image

    Image.effect_noise((200, 200), 60).convert("RGB").save(place.pictures / "cut.jpg")
    whole = (place.pictures / "cut.jpg").read_bytes()
    (place.pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (place.pictures / "text.jpg").write_text("no picture at all", encoding="utf-8")
    message = refused(place)
    assert "cut.jpg" in message and "text.jpg" in message, "all of them at once"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training__stepz": 1}, "did you mean training.steps?"),
        ({"training__batch": "two"}, "training.batch=two: must be a whole number"),
        ({"training__steps": 0}, "training.steps=0"),
        ({"prior__prompt": "a drawing of a dog"}, "class noun"),
        ({"data__resolution": 33}, "data.resolution: 33 is not a multiple of 8"),
        ({"model__base": "nowhere/at/all"}, "nowhere/at/all"),
        ({"trainer__accelerator": "abacus"}, "abacus"),
        ({"trainer__strategy": "magic"}, "magic"),
        ({"training__batch": 4, "training__accumulate": 4}, "prior.batch"),
        ({"evaluation": "{oracle: 'nowhere.to:Be'}"}, "evaluation.oracle=nowhere.to:Be"),
    ],
)
def test_wrong_settings(
    place: Workspace, refused: Callable[..., str], settings: dict[str, object], said: str
) -> None:
    assert said in refused(place, **settings)


def test_missing_config_file(place: Workspace, refused: Callable[..., str]) -> None:
    assert "absent.yaml: no such" in refused(place, "absent.yaml")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_base_without_a_part(place: Workspace, refused: Callable[..., str], part: str) -> None:
    base = place.folder / "base"
    shutil.copytree(place.base, base)
    shutil.rmtree(base / part)
    message = refused(place, model__base=base)
    assert part in message and str(base) in message


@pytest.mark.parametrize("identifier", ["", "qqq"])
def test_poor_identifier_is_warned_of(
    place: Workspace, identifier: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ldm"):
        assert place.main("--dry-run", subject__identifier=identifier) == 0
    (warning,) = [r.getMessage() for r in caplog.records if "subject.identifier" in r.getMessage()]
    assert "q + q + q" in warning if identifier else "empty" in warning


def test_places_that_cannot_be_written(place: Workspace, refused: Callable[..., str]) -> None:
    file = place.folder / "file"
    file.write_text("in the way", encoding="utf-8")
    for key in ("logs", "prior__root", "data__cache"):
        message = refused(place, **{key: file / "below"})
        assert str(file) in message and key.replace("__", ".") in message


def test_existing_run_folder(
    place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Noon":
            return cls(2026, 1, 31, 12)

    monkeypatch.setattr(main, "datetime", Noon)
    place.train("same")
    before = {path: path.stat().st_mtime_ns for path in place.logs.rglob("*")}
    assert place.main("--name", "same") == 2
    assert "2026-01-31T12-00-00_same exists already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in place.logs.rglob("*")}


def test_exit_status_of_the_process(place: Workspace) -> None:
    command = [sys.executable, str(ROOT / "main.py")]
    wrong = subprocess.run(
        [*command, *place.words(training__steps=0)],
        capture_output=True,
        text=True,
        cwd=place.folder,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "error: configuration: training.steps=0: must be at least 1"
    ]
    nothing = subprocess.run(command, capture_output=True, text=True)
    assert nothing.returncode == 2 and "--base" in nothing.stderr
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0
