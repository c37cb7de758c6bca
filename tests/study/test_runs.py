"""One run as a process: kept, gone on with, begun anew; what is said of a failure."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from ldm.config import flat, load_config
from ldm.errors import UserError
from ldm.study.runs import Task, alone, bring, check_same, evaluation_of, runs_of
from tests.study.program import DIES, FAILS, FAILS_ONCE, UNMEASURED, WAITS

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
MakeTask = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTask:
    """Make a task of the given configuration for the program that stands in for main.py."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def make(*words: str, name: str = "robot") -> Task:
        config = flat(load_config([], list(words)))
        words = (str(ROOT / "configs/dreambooth.yaml"), *words)
        return Task(name, words, config, tmp_path / "runs", PROGRAM)

    return make


def test_a_run_is_made_once(task: MakeTask) -> None:
    first = bring(task("training.steps=200"))
    assert first.state == "done" and first.run is not None and first.tail == ()
    evaluation = evaluation_of(first.run)
    assert evaluation is not None and evaluation["chosen"] == 200
    assert json.loads((first.run / "run.json").read_text())["config"]["training.steps"] == 200
    again = bring(task("training.steps=200"))
    assert again.state == "kept" and again.run == first.run
    record = json.loads(first.task.record.read_text())
    assert [attempt["status"] for attempt in record["attempts"]] == [0]


def test_names_are_not_mixed_up(task: MakeTask, tmp_path: Path) -> None:
    bring(task(name="backpack_dog"))
    assert runs_of(tmp_path / "runs", "dog") == []
    assert bring(task(name="dog")).state == "done"
    assert len(runs_of(tmp_path / "runs", "dog")) == 1


@pytest.mark.parametrize(
    ("seed", "said"),
    [(FAILS, "exit status 1"), (DIES, "ended by SIGKILL"), (UNMEASURED, "no whole evaluation")],
)
def test_a_failure_says_why(task: MakeTask, seed: int, said: str) -> None:
    outcome = bring(task(f"seed={seed}"))
    assert outcome.state == "failed"
    assert said in outcome.tail[-1] and "at work" in outcome.tail
    assert (outcome.tail[-2] == "something is wrong") == (seed == FAILS)
    record = json.loads(outcome.task.record.read_text())
    assert record["attempts"][0]["tail"] == list(outcome.tail)


def test_wrong_input_is_a_failure_that_shows_the_message(task: MakeTask) -> None:
    outcome = bring(task(name="no/name"))
    assert outcome.state == "failed", "the log cannot be written"
    assert "no/name.log" in "".join(outcome.tail)


def test_what_was_broken_off_goes_on(task: MakeTask) -> None:
    one = task(f"seed={FAILS_ONCE}")
    assert bring(one).state == "failed"
    outcome = bring(one)
    assert outcome.state == "done"
    assert "resumed" in one.log.read_text()
    assert len(runs_of(one.folder, one.name)) == 1
    assert len(json.loads(one.record.read_text())["attempts"]) == 2


def test_a_cut_evaluation_is_measured_again(task: MakeTask) -> None:
    run = bring(task()).run
    assert run is not None
    file = run / "evaluation.json"
    file.write_text(file.read_text()[:100])
    outcome = bring(task())
    assert outcome.state == "done" and outcome.run == run
    assert evaluation_of(run)


def test_what_another_oracle_measured_is_measured_again(task: MakeTask) -> None:
    words = ("evaluation.oracle=tests.evaluation.fake:BrightnessOracle",)
    run = bring(task(*words)).run
    assert run is not None
    file = run / "evaluation.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"oracle": {"threshold": 0.999}}))
    assert bring(task(*words)).state == "kept"
    file.write_text(json.dumps(whole | {"oracle": {"threshold": 0.9}}))
    outcome = bring(task(*words))
    assert outcome.state == "done" and outcome.run == run
    assert "resumed" in outcome.task.log.read_text(), "it is not trained anew"
    assert "oracle" not in json.loads(file.read_text()), "made anew"


@pytest.mark.parametrize("damage", ["config.yaml", "run.json", "resume.ckpt"])
def test_a_damaged_run_is_begun_anew(
    task: MakeTask, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = task(f"seed={FAILS_ONCE}")
    bring(one)
    (broken,) = runs_of(one.folder, one.name)
    (broken / damage).write_text("training: {steps: ")
    assert bring(one).state == "failed", "begun anew, so that it fails as a first attempt does"
    (run,) = runs_of(one.folder, one.name)
    aside = broken.with_name(f".{broken.name}.damaged")
    assert (aside / damage).exists(), "nothing is lost"
    assert "begun anew" in caplog.text
    assert bring(one).state == "done"


def test_another_configuration_is_refused(task: MakeTask) -> None:
    bring(task("training.steps=200"))
    check_same([task("training.steps=200", "logs=elsewhere", "trainer.accelerator=cpu")])
    with pytest.raises(UserError, match=r"robot: training.steps=300, was 200"):
        check_same([task("training.steps=300")])


def test_an_interruption_stops_the_process_gently(task: MakeTask, tmp_path: Path) -> None:
    one = task(f"seed={WAITS}")

    def interrupt() -> None:
        while not (one.log.exists() and "at work" in one.log.read_text()):
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        bring(one)
    assert "saved" in one.log.read_text()
    assert json.loads(one.record.read_text())["attempts"][0]["tail"] == ["interrupted"]
    assert bring(one).state == "done"


def test_a_process_that_outlived_its_parent_is_waited_for(
    task: MakeTask, caplog: pytest.LogCaptureFixture
) -> None:
    one = task()
    run = bring(one).run
    assert run is not None
    file, whole = run / "evaluation.json", (run / "evaluation.json").read_text()
    file.unlink()
    held = threading.Event()

    def finish() -> None:
        with filelock.FileLock(run / ".lock"):
            held.set()
            while "still at work" not in caplog.text:
                time.sleep(0.02)
            file.write_text(whole)

    with caplog.at_level(logging.WARNING):
        threading.Thread(target=finish, daemon=True).start()
        held.wait()
        assert bring(one).state == "kept"
    assert "resumed" not in one.log.read_text()


def test_one_study_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UserError, match="at work in"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
