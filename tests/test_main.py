"""`main.py` from the command line to the run folder: what it makes, resumes and refuses."""

import csv
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import main
from ldm.errors import UserError
from ldm.run.job import Job
from ldm.sampling import prior
from ldm.training import DreamBoothModule
from tests.forked import forked, ranks
from tests.workspace import Workspace, difference, evaluated, weights

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

    def spy(module: DreamBoothModule, batches: Any, dataloader_idx: int) -> Any:
        for batch in batches:
            seen.update(itertools.compress(batch["names"], batch["is_prior"].tolist()))
        return step(module, batches, dataloader_idx)

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


def test_interrupted_while_making_class_images(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save, saved = prior._save, []

    def save_then_interrupt(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 1:  # a second one would end the process at once
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(prior, "_save", save_then_interrupt)
        run = place.train("stopped")
    assert f"--resume {run}" in caplog.text
    (folder,) = (place.folder / "prior").iterdir()
    assert 1 <= len(list(folder.glob("*.png"))) < 3
    assert signal.getsignal(signal.SIGINT) is before
    assert main.main(["--resume", str(run)]) == 0
    assert difference(run, place.train("whole")) == 0


def test_interrupted_anywhere_else_is_one_line(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "configured", interrupt)
    assert place.main() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_two_processes_share_the_work(place: Workspace) -> None:
    """Each makes its share of the class images; together they train on what one process does."""
    settings = {"prior__count": 5, "trainer__strategy": "ddp", "trainer__devices": 2}
    made = forked(main.main, place.words("--name", "two", **settings), told=ranks(2))
    assert made.returncode == 0, made.stderr
    (two,) = place.logs.glob("*_two")
    (folder,) = (place.folder / "prior").iterdir()
    assert len(list(folder.glob("*.png"))) == 5
    assert "class images made 3/3" in made.stderr and "class images made 2/2" in made.stderr
    one = place.train("one", prior__count=5)
    assert difference(one, two) < 2e-3, "but for rounding"


def test_wandb_offline(place: Workspace) -> None:
    """Two runs in one process (a notebook): each has its own, and nothing stays open."""
    wandb = pytest.importorskip("wandb")
    for name in ("first", "second"):
        run = place.train(name, logger__wandb="true", logger__offline="true", samples__every=2)
        assert wandb.run is None
        (folder,) = (run / "wandb").glob("offline-run-*")
        assert folder.name.endswith(f"-{run.name}")
        assert list(folder.glob("run-*.wandb"))


@pytest.mark.parametrize("failed", [False, True])
def test_wandb_is_told_how_it_ended(
    place: Workspace, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    codes: list[int | None] = []
    fit, finish = Job.fit, wandb.Run.finish

    def then_fail(job: Job) -> bool:
        fit(job)
        raise UserError("the end is not reached")

    def watched(run: object, exit_code: int | None = None) -> None:
        codes.append(exit_code)
        finish(run, exit_code)

    if failed:
        monkeypatch.setattr(Job, "fit", then_fail)
    monkeypatch.setattr(wandb.Run, "finish", watched)
    status = place.main(logger__wandb="true", logger__offline="true")
    assert status == (2 if failed else 0)
    assert codes == [int(failed)]
    assert wandb.run is None


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


# --- the plan -------------------------------------------------------------------------------------


def test_dry_run_says_what_will_be_measured(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    del place.settings["evaluation"]
    place.settings |= evaluated(place.folder) | {"training.steps": 6, "snapshots.every": 2}

    def plan(**settings: object) -> str:
        assert place.main("--dry-run", **settings) == 0
        return capsys.readouterr().out

    said = plan()
    assert "evaluation    at the end, with oracle\n" in said
    assert "36 pictures of 3 snapshots, 18 of the untouched base" in said, "12 each, 6 again"
    assert "2 steps each: about 75 % of the time" in said  # 54 x 4 passes, 6 x 4 samples x 3
    assert "24 pictures of 2 snapshots" in plan(snapshots__keep=2)
    assert "every 2 steps and at the end" in plan(evaluation__every=2)
    missing = plan(evaluation__lpips=place.folder / "nowhere")
    assert "not measured with lpips: " in missing and "no such folder" in missing
    assert "none (evaluation: null)" in plan(evaluation="null")
    assert {path.name for path in place.folder.iterdir()} == {"pictures"}, "nothing is made"
    place.train("run")
    capsys.readouterr()
    assert "0 of the untouched base" in plan(), "the plan finds what the run has made"


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
    disks = set()
    for count in (3, 3000):
        assert place.main("--dry-run", prior__folder=place.pictures, prior__count=count) == 0
        plan = capsys.readouterr().out
        assert "3 of your own" in plan
        disks |= {line for line in plan.splitlines() if line.startswith("disk")}
    assert len({line.partition(" of ")[0] for line in disks}) == 1, "prior.count is not used"
    assert place.main("--dry-run", prior="null") == 0
    assert "none (prior: null)" in capsys.readouterr().out
