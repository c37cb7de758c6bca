"""scripts/benchmark.py, with a program that stands in for main.py."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import scripts.benchmark
from ldm.config import load_config
from ldm.study import spread as spreading
from ldm.study.runs import runs_of
from ldm.study.subjects import Subject, write_overlay
from tests.forked import running
from tests.study.program import FAILS_ONCE, WAITS

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
MAIN_JOB = ROOT / "configs" / "dreambooth.yaml"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scripts.benchmark, "PROGRAM", PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", ["scripts/benchmark.py", "..."])
    return tmp_path / "out"


def bench(out: Path, *words: str) -> int:
    return scripts.benchmark.main(["storybench", "--out", str(out), *words])


TWO = ("--subjects", "robot_mint", "random:7:cat")


def test_storybench(
    out: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert bench(out, *TWO, "--method", "slow", "training.steps=200") == 0
    content = json.loads((out / "table.json").read_text())
    (robot, cat) = sorted(content["rows"], key=lambda row: row["class_noun"] != "robot")
    assert robot["subject"] == "robot_mint" and cat["class_noun"] == "cat"
    config = json.loads((out / robot["run"] / "run.json").read_text())["config"]
    assert config["subject.class_noun"] == "robot" and config["evaluation.images"] == 4
    assert config["training.steps"] == 200
    pictures = Path(config["subject.pictures"])
    assert len(list(pictures.glob("*.png"))) == 5
    assert len(list((pictures / "heldout").glob("*.png"))) == 20
    assert content["methods"]["slow"]["machine"]["cores"] == os.cpu_count()
    assert (out / "table.md").exists() and (out / "table.csv").exists()
    assert "2 subjects in the table, 0 failed" in capsys.readouterr().out
    assert "[1 of 2]" in caplog.text and "left" in caplog.text

    assert bench(out, *TWO, "--method", "slow", "training.steps=200") == 0
    assert caplog.text.count("was complete") == 2
    assert bench(out, *TWO, "--method", "fast", "training.steps=100") == 0
    content = json.loads((out / "table.json").read_text())
    assert {row["method"] for row in content["rows"]} == {"slow", "fast"}


@pytest.fixture
def one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """robot_mint does at first."""

    def overlay(subject: Subject, path: Path) -> Path:  # its own part of the configuration
        written = write_overlay(subject, path)
        if subject.name == "robot_mint":
            written.write_text(f"seed: {FAILS_ONCE}\n" + written.read_text())
        return written

    monkeypatch.setattr(scripts.benchmark, "write_overlay", overlay)


@pytest.mark.usefixtures("one_fails")
def test_a_failure_does_not_lose_the_rest(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert bench(out, *TWO) == 1
    assert "something is wrong" in caplog.text
    content = json.loads((out / "table.json").read_text())
    assert len(content["rows"]) == 1 and content["failures"][0]["subject"] == "robot_mint"
    assert "robot_mint" in (out / "table.md").read_text().split("## Failed")[1]
    assert bench(out, *TWO) == 0, "the failed one goes on, the other is kept"
    content = json.loads((out / "table.json").read_text())
    assert len(content["rows"]) == 2 and not content["failures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subjects", "robot_nobody"], "robot_nobody"),
        (["training.stepz=3"], "did you mean training.steps"),
        (["subject.class_noun=dog"], "are set by the benchmark"),
        (["evaluation=null"], "a benchmark measures"),
        (["--method", "no/name"], "name='no/name'"),
        (["--executor", "local", "--options", "x"], "must be KEY=VALUE"),
        (["--executor", "local", "--options", "slurm_x=1"], "--executor local"),
    ],
)
def test_bad_input(
    out: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(out, *words) == 2
    assert said in capsys.readouterr().err
    assert not list(out.glob("runs/*/2*"))


def test_another_configuration_under_the_same_name(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(out, "--subjects", "robot_mint") == 0
    assert bench(out, "--subjects", "robot_mint", "training.steps=7") == 2
    steps = load_config([MAIN_JOB], []).training.steps
    assert f"training.steps=7, was {steps}" in capsys.readouterr().err


def test_subjects_drawn_at_random(out: Path) -> None:
    assert bench(out, "--random", "2", "--seed", "40") == 0
    names = {row["subject"] for row in json.loads((out / "table.json").read_text())["rows"]}
    assert bench(out, "--random", "2", "--seed", "41") == 0
    more = {row["subject"] for row in json.loads((out / "table.json").read_text())["rows"]}
    assert len(names) == 2 and len(more) == 3 and names < more


def test_dreambench(out: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    (data / "clock").mkdir(parents=True)
    Image.new("RGB", (80, 60), "red").save(data / "clock" / "00.jpg")
    text = "clock,clock\nObject Prompts\n'a {0} {1} in the snow'.format(a, b)\n"
    (data / "prompts_and_classes.txt").write_text(text)
    words = ["dreambench", "--data", str(data), "--out", str(out)]
    assert scripts.benchmark.main(words) == 0
    (run,) = runs_of(out / "runs" / "default", "clock")
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["evaluation.prompts"] == ["a [V] clock in the snow"]
    assert config["evaluation.oracle"] is None and config["evaluation.images"] == 4
    assert "As in the paper" in (out / "table.md").read_text()


def with_stand_in(words: list[str]) -> int:
    scripts.benchmark.PROGRAM = PROGRAM
    return scripts.benchmark.main(words)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_and_started_again(out: Path, tmp_path: Path, number: int) -> None:
    words = ["storybench", "--subjects", "robot_mint", f"seed={WAITS}", "--out", str(out)]
    told = {"PYTHONPATH": str(ROOT)}
    log = out / "runs" / "default" / "robot_mint.log"
    with running(tmp_path / "said", with_stand_in, words, told=told) as process:
        while not (log.exists() and "at work" in log.read_text()):
            assert process.is_alive()
            time.sleep(0.05)
        os.kill(process.pid or 0, number)
        process.join()
    assert process.exitcode == (130 if number == signal.SIGTERM else -number)
    if number == signal.SIGKILL:  # the run outlives who started it
        assert "saved" not in log.read_text()
        os.kill(int(log.read_text().split("process ")[1].split()[0]), signal.SIGKILL)
    else:
        assert "saved" in log.read_text(), "it was stopped gently"
    assert with_stand_in(words) == 0
    assert len(runs_of(out / "runs" / "default", "robot_mint")) == 1
    assert len(json.loads((out / "table.json").read_text())["rows"]) == 1


# --- by submitit


@pytest.mark.usefixtures("one_fails")
def test_processes_on_this_machine_at_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "POLL", 0.1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    words = ["--executor", "local", "--jobs", "2", "--gpus", "3", "5"]
    assert bench(out, *TWO, *words, "--options", "timeout_min=5") == 1
    content = json.loads((out / "table.json").read_text())
    (row,), (failure,) = content["rows"], content["failures"]
    assert "something is wrong" in failure["tail"]
    names = (row["subject"], failure["subject"])
    logs = [(out / f"runs/default/{name}.log").read_text() for name in names]
    assert all("threads 3 " in log for log in logs), "the cores are shared"
    assert {log.split("gpus ")[1][0] for log in logs} == {"3", "5"}, "each has one of its own"
