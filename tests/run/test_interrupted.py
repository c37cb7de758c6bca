"""Asked to stop while live class images are waited for: nothing is lost, the words are true."""

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

import main
from ldm.checkpoint import find_resume
from ldm.config import load_config
from ldm.run.folder import new_run
from ldm.training import ranks
from tests.training.troubled import stop_while_waiting
from tests.workspace import MAIN_JOB, Workspace, difference

LIVE: dict[str, object] = {
    "prior.images": "live",
    "prior.count": 3,
    "prior.uses": 1,
    "training.steps": 5,
    "training.save_every": 100,
    "snapshots.every": 5,
}


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"), LIVE)


def test_in_the_midst_of_training_nothing_is_lost(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        stop_while_waiting(4, patch.setattr)
        run = place.train("stopped")
    point = find_resume(run)
    assert point is not None and 0 < point.step < 5
    said = f"stopped after step {point.step}; go on with: python main.py --resume {run}"
    assert caplog.messages.count(said) == 1 and "stopped before" not in caplog.text
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(n + 1) for n in range(point.step)]
    assert main.main(["--resume", str(run)]) == 0
    assert difference(run, place.train("whole"), step=5) == 0


def test_before_the_first_step_there_is_nothing_to_save(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_while_waiting(1, monkeypatch.setattr)
    run = place.train("stopped")
    assert find_resume(run) is None
    assert f"stopped before training; go on with: python main.py --resume {run}" in caplog.text


def test_only_a_process_that_was_started_is_told_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"logs={tmp_path}", "name=a", "trainer.devices=2"]
    config, now = load_config([MAIN_JOB], words), datetime(2026, 1, 31)
    own = tmp_path / "2026-01-31T00-00-00_a"
    monkeypatch.setenv(ranks.RUN, "logs/told")
    assert new_run(config, now) == own, "the first process is not told, whatever was left there"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert new_run(config, now) == Path("logs/told")
    monkeypatch.delenv(ranks.RUN)
    assert new_run(config, now) == own
