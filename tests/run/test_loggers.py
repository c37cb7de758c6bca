"""W&B that cannot be reached: the run is kept offline, nothing is asked, nobody waits for long."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ldm.config import Config
from ldm.run.live.loggers import build_loggers, log_end, wandb_id
from ldm.training.loggers import Guarded, Wandb
from tests.workspace import Workspace

wandb = pytest.importorskip("wandb")

NO_ONE = "http://127.0.0.1:9"  # nobody listens at this port


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings of whoever runs the tests; no run is left open."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", NO_ONE)
    monkeypatch.setattr(Wandb, "START_SECONDS", 1.0)
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def logger(tmp_path: Path) -> Wandb:
    run = tmp_path / "2026-01-31T10-20-30_robot"
    run.mkdir()
    config = Config()
    config.logger.wandb = True
    (_, logger) = build_loggers(config, run, None)
    assert isinstance(logger, Wandb)
    return logger


def check_offline(logger: Wandb, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded(logger)
    assert guarded.experiment.offline
    guarded.log_metrics({"loss": 1.0}, 1)
    assert not guarded.dropped
    (said,) = [text for text in caplog.messages if "W&B" in text]
    assert reason in said and f"wandb sync {logger.save_dir}/wandb/offline-run-*" in said
    (folder,) = (Path(logger.save_dir or "") / "wandb").glob("offline-run-*")
    assert folder.name.endswith(f"-{Path(logger.save_dir or '').name}"), "the run's own id"


def test_not_logged_in(
    logger: Wandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a question was asked at the terminal")

    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setattr("wandb.errors.term.terminput", asked)
    check_offline(logger, "wandb login", caplog)


@pytest.mark.slow  # W&B tries for some ten seconds, whatever it is told
def test_nobody_answers(
    logger: Wandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    check_offline(logger, "connection refused", caplog)


def test_a_start_that_fails(
    logger: Wandb, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = wandb.init

    def fail_online(**options: object) -> object:
        if options.get("mode") == "offline":
            assert options["settings"] == {"init_timeout": 300.0, "finish_timeout": 120.0}
            return start(**options)
        assert options["settings"] == {"init_timeout": 1.0, "finish_timeout": 120.0}
        raise wandb.errors.CommError("timed out")

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", fail_online)
    check_offline(logger, "timed out", caplog)


def test_a_resumed_run_is_the_same_one(tmp_path: Path) -> None:
    config = Config()
    config.logger.wandb = True
    run = tmp_path / "2026-01-31T10-20-30_robot"
    options = [build_loggers(config, run, start)[1]._wandb_init for start in (None, 400)]  # type: ignore[attr-defined]
    assert [(o["id"], o["resume"]) for o in options] == [(run.name, "allow")] * 2
    assert wandb_id(tmp_path / "my run: 50%?") == "my-run--50--"


@pytest.mark.parametrize("gib", [1.0, 1e-9])
def test_what_came_of_a_run_is_kept_offline(
    tmp_path: Path, gib: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The table of metrics; the export as an artifact where it is no larger than asked for."""
    caplog.set_level(logging.INFO)
    run = tmp_path / "2026-01-31T10-20-30_robot"
    (run / "export/unet").mkdir(parents=True)
    (run / "export/unet/weights.safetensors").write_bytes(b"0" * 2000)
    (run / "export/dreambooth.json").write_text('{"identifier": "sks"}')
    config = Config()
    config.logger.wandb = config.logger.offline = True
    config.logger.artifact_gib = gib
    (_, logger) = build_loggers(config, run, None)
    guarded = Guarded(logger)
    trainer: Any = SimpleNamespace(loggers=[guarded], global_step=2)
    numbers = {"subject/identity": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}}
    result = {"base": numbers, "snapshots": {"1": numbers, "2": numbers}, "chosen": 1}
    log_end(config, run, trainer, result, {"loss": 1.0})
    assert not guarded.dropped, caplog.text
    guarded.close(failed=False)
    (folder,) = (run / "wandb").glob("offline-run-*")
    (table,) = folder.glob("files/media/table/*.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[:5] for row in rows][1] == [
        *("subject/identity", "recognised as the subject", "step 1", True, 0.5)
    ]
    assert [row[2] for row in rows] == ["base", "step 1", "step 2"]
    wandb.teardown()  # its service ends, with all of its records on the disk
    (written,) = (path.read_bytes() for path in folder.glob("*.wandb"))
    named = [name in written for name in (b"_robot-model", b"weights.safetensors", b"step-1")]
    assert named == [gib == 1] * 3
    assert ("more than logger.artifact_gib=1e-09: W&B does not get it" in caplog.text) == (gib < 1)


@pytest.mark.slow
def test_a_run_without_a_network(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> None:
    """From the command line to the end: status 0, one warning, everything but W&B as ever."""
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    main = Path(__file__).parent.parent.parent / "main.py"
    command = [sys.executable, str(main), *place.words("--name", "alone", logger__wandb="true")]
    environment = {**os.environ, "WANDB_API_KEY": "a" * 40}
    made = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment)
    assert made.returncode == 0, made.stderr
    (run,) = place.logs.glob("*_alone")
    assert list((run / "wandb").glob("offline-run-*"))
    assert made.stderr.count("W&B cannot be used online") == 1
