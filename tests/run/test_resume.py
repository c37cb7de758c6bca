"""Going on with a run: exactly where it stopped, or a reason why not."""

import csv
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
from ldm.checkpoint import find_resume
from ldm.run.resume import last_step
from ldm.sampling.metadata import read_settings
from tests.torture import unequal
from tests.workspace import Workspace, difference, evaluated, weights

pytestmark = pytest.mark.usefixtures("empty_plots")


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


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


def test_resume_refuses_other_values(
    place: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = place.train("begun", training__steps=1)
    assert main.main(["--resume", str(run), "training.batch=4", "seed=1", "training.steps=2"]) == 2
    message = capsys.readouterr().err
    refused, _, allowed = message.partition("these may change:")
    assert "training.batch=4, was 2" in refused and "seed=1, was 0" in refused
    assert "training.steps" not in refused and "training.steps=2, was 1" in allowed
    assert main.main(["--resume", str(tmp_path / "none")]) == 2
    assert main.main(["--resume", str(place.pictures)]) == 2
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(facts | {"base_fingerprint": "0"}), encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=2"]) == 2
    assert "model.base" in capsys.readouterr().err
    before = facts["pictures"] | {"1.png": "0", "gone.png": "0"}
    changed = facts | {"base_fingerprint": "0", "pictures": before}
    (run / "run.json").write_text(json.dumps(changed), encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=2"]) == 2
    message = capsys.readouterr().err
    for said in ("model.base", "pictures gone: gone.png", "pictures changed: 1.png"):
        assert said in message, "all at once"


def test_a_config_that_was_edited_or_cut_short_is_compared_too(
    place: Workspace, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """run.json knows with what the run was started."""
    run = place.train("edited", objective__weighting="min_snr", training__steps=1)
    file = run / "config.yaml"
    whole = file.read_text(encoding="utf-8")
    more = ["--resume", str(run), "training.steps=2"]

    file.write_text(whole.replace("weighting: min_snr", "weighting: p2"), encoding="utf-8")
    assert main.main(more) == 2
    message = capsys.readouterr().err
    assert "objective.weighting='p2', was 'min_snr'" in message
    assert f"put them back into {file}" in message
    lines = whole.splitlines(keepends=True)
    for end in range(0, lines.index("objective:\n"), 9):
        file.write_text("".join(lines[:end]), encoding="utf-8")
        assert main.main(more) == 2
    file.write_text("", encoding="utf-8")
    assert main.main(more) == 2
    assert "Traceback" not in capsys.readouterr().err

    file.write_text(whole.replace("save_every: 1", "save_every: 2"), encoding="utf-8")
    assert main.main(more) == 0
    assert "training.save_every=2, was 1" in caplog.text
    caplog.clear()
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0
    assert "save_every" not in caplog.text, "said once"


def test_grids_that_were_drawn_differently_are_not_put_side_by_side(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    run = place.train("drawn", samples__every=1, samples__prompts="a [V] robot")
    assert read_settings(run / "sheet.png")["steps_shown"] == [0, 2]
    assert main.main(["--resume", str(run), "training.steps=3", "snapshots.keep=9"]) == 0
    assert read_settings(run / "sheet.png")["steps_shown"] == [0, 3]
    with Image.open(run / "sheet.png") as sheet:
        both = sheet.width
    assert not caplog.records or "other settings" not in caplog.text
    assert main.main(["--resume", str(run), "training.steps=4", "samples.seed=100"]) == 0
    assert read_settings(run / "sheet.png")["steps_shown"] == [4]
    assert "without the untouched base" in caplog.text
    with Image.open(run / "sheet.png") as sheet:
        assert sheet.width < both


def test_fewer_steps_than_are_done(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train("done")
    before = (run / "config.yaml").read_bytes()
    assert main.main(["--resume", str(run), "training.steps=1"]) == 2
    message = capsys.readouterr().err
    assert "training.steps=1" in message and "2 steps behind it" in message
    assert (run / "config.yaml").read_bytes() == before


def test_a_learning_rate_that_will_jump_is_warned_of(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    falling = place.train("falling", training__schedule="linear")
    constant = place.train("constant")
    said = []
    for run, steps in ((falling, 2), (constant, 3), (falling, 3)):
        caplog.clear()
        assert main.main(["--resume", str(run), f"training.steps={steps}"]) == 0
        said.append("training.schedule=linear change from step 2 on" in caplog.text)
    assert said == [False, False, True]


def test_raised_steps_have_the_rates_of_the_new_length(place: Workspace) -> None:
    run = place.train("falling", training__schedule="linear", training__steps=2)
    assert main.main(["--resume", str(run), "training.steps=4"]) == 0
    with (run / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr/unet"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4]), "half of the old, then of the new"
    moved = unequal(weights(run, 2), weights(run, 3), "weights")
    assert list(moved), "no step at the rate 0 of the old end"


def test_results_of_an_earlier_end_go_when_training_goes_on(place: Workspace) -> None:
    run = place.train("done")
    results = [run / "evaluation.json", run / "sheet.png"]
    for path in results:
        path.write_text("of step 2", encoding="utf-8")
    assert main.main(["--resume", str(run)]) == 0
    assert all(path.exists() for path in results), "there was nothing left to train"
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0
    assert not any(path.exists() for path in results)


def test_a_finished_run_says_so(
    place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place.train("done")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    shutil.rmtree(place.pictures)  # they are not needed to say it
    capsys.readouterr()
    assert main.main(["--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "is finished: all of its 2 steps are done" in said
    assert f"python main.py --resume {run} training.steps=N, with N above 2" in said
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_what_was_not_measured_or_drawn_is(
    place: Workspace, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    del place.settings["evaluation"]
    place.settings |= evaluated(place.folder)
    run = place.train(
        "done",
        training__optimizer=optimizer,
        training__learning_rate=0.05,
        samples__every=1,
        samples__prompts="a [V] robot",
    )
    text = (run / "evaluation.json").read_text(encoding="utf-8")
    numbers, sheet = json.loads(text), (run / "sheet.png").read_bytes()
    (run / "evaluation.json").write_text(text[: len(text) // 2], encoding="utf-8")
    assert main.main(["--resume", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text(encoding="utf-8")) == numbers
    (run / "sheet.png").unlink()
    assert main.main(["--resume", str(run)]) == 0
    assert (run / "sheet.png").read_bytes() == sheet
    capsys.readouterr()
    assert main.main(["--resume", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_crash_costs_what_was_not_saved(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    straight = place.train("straight", training__steps=6)
    run = place.train("crashed", training__steps=5, training__save_every=3)
    shutil.copy(run / "resume.previous.ckpt", run / "resume.ckpt")  # as killed after step 5
    (run / "metrics.csv").open("a").write("6,0.")
    for left in (".resume.ckpt.staging", "snapshots/.step-000099.staging"):
        (run / left).mkdir()
    with caplog.at_level(logging.INFO):
        assert main.main(["--resume", str(run), "training.steps=6"]) == 0
    assert (
        "going on after step 3 of 6; steps done after it that were lost and are repeated: 3 "
        "(at most training.save_every=3)"
    ) in caplog.text
    assert difference(straight, run, step=6) == 0
    assert not list(run.rglob("*.staging"))
    assert last_step(run) == 6


def test_a_damaged_state_is_set_aside_and_the_one_before_used(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    straight = place.train("straight", training__steps=3)
    run = place.train("damaged", training__steps=2)
    newest = run / "resume.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    broken = newest.read_bytes()
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0
    assert f"{newest} is damaged: its size" in caplog.text
    assert "resume.previous.ckpt, of step 1, is used" in caplog.text
    assert caplog.text.count("is damaged") == 1, "known, it is no longer in the way"
    assert (run / "resume.damaged.ckpt").read_bytes() == broken
    assert difference(straight, run, step=3) == 0
    newest.unlink()
    point = find_resume(run)
    assert point is not None and point.step == 2


def test_another_arithmetic_is_said(place: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    run = place.train("begun", training__precision="auto")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["precision"] in ("fp32", "bf16-mixed")
    with caplog.at_level(logging.WARNING, logger="ldm"):
        assert main.main(["--resume", str(run), "training.steps=3"]) == 0
    assert "was computed in" not in caplog.text
    (run / "run.json").write_text(json.dumps(facts | {"precision": "16-mixed"}), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="ldm"):
        assert main.main(["--resume", str(run), "training.steps=4"]) == 0
    assert (
        f"was computed in 16-mixed, on this device training.precision=auto is {facts['precision']}"
        in (caplog.text)
    )


def test_accumulation_may_change(place: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    whole = place.train("whole", training__steps=4)
    run = place.train("parted", training__steps=2)
    with caplog.at_level(logging.INFO):
        words = ["training.steps=4", "training.accumulate=2"]
        assert main.main(["--resume", str(run), *words]) == 0
    assert "training.accumulate=2, was 1 (the samples are the same" in caplog.text
    assert last_step(run) == 4
    assert 0 < difference(whole, run, step=4) < 2e-4, "but for rounding"


def test_pictures_may_move_but_not_change(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("begun", training__steps=1, prior__folder=place.pictures)
    moved = place.folder / "moved"
    shutil.copytree(place.pictures, moved)
    words = ["--resume", str(run), f"subject.pictures={moved}", f"prior.folder={moved}"]
    assert main.main([*words, "training.steps=2"]) == 0
    (moved / "0.txt").write_text("a photo of [V] robot", encoding="utf-8")
    (moved / "2.png").rename(moved / "3.png")
    capsys.readouterr()
    assert main.main([*words, "training.steps=3"]) == 2
    message = capsys.readouterr().err
    for said in (
        "pictures gone: 2.png",
        "pictures new: 3.png",
        "prompts changed: 0.png",
        "class pictures gone: 2.png",
    ):
        assert said in message
    assert main.main(["--resume", str(run), "prior.folder=null", "training.steps=3"]) == 2
    assert "prior.folder=None" in capsys.readouterr().err


def test_without_run_json_it_is_made_again(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    run = place.train("begun", training__steps=1)
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text("{", encoding="utf-8")
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    assert "base and pictures are not compared" in caplog.text
    again = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert again["pictures"] == facts["pictures"]


@pytest.mark.parametrize("lost", [False, True])
def test_more_steps_bring_no_phase_back(place: Workspace, lost: bool) -> None:
    """Its shares are of the first length, which config.yaml knows too if run.json is lost."""
    run = place.train("stopped", training__steps=2, training__text_encoder_stop=0.5)
    if lost:
        (run / "run.json").unlink()
    for steps in (6, 14):
        assert main.main(["--resume", str(run), f"training.steps={steps}"]) == 0
    for step in (3, 6, 7, 14):
        text = weights(run, step, "text_encoder")
        assert not list(unequal(weights(run, 2, "text_encoder"), text, "text encoder"))


def test_the_last_step_of_what_is_left_of_a_file(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    for text, last in (("step,loss\n", 0), ("step,loss\n1,2\n2,3\n", 2), ("step\n7,\x00", 7)):
        (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
        assert last_step(tmp_path) == last
