"""A run stopped and gone on with in a new process ends bit for bit where it would have ended."""

import csv
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import Ended
from tests.torture import unequal
from tests.training.job import run_jobs

LEVELS = ("INFO ", "WARNING ", "ERROR ", "CRITICAL ")
TIMES = ("samples_per_second", "peak_memory_gib", "seconds")

COMMON: dict[str, Any] = {
    "steps": 5,
    "accumulate": 2,
    "gradient_clip": 1.0,
    "objective": {"weighting": "min_snr"},
}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16-mixed"},
    "frozen": {"precision": "fp32", "text_encoder": False},
    "buckets": {"precision": "fp32", "buckets": True},
    "killed": {"precision": "fp32", "save_every": 2},
}

BaseFolder = Callable[[str], Path]


@dataclass
class Runs:
    """Each case trained through (`whole`) and interrupted (`parted`), by four processes."""

    folder: Path
    first: Ended  # whole runs, and those stopped by one signal after step 2
    killed: Ended  # SIGKILL after step 3, one step after saving
    second: Ended  # goes on with all that were interrupted
    rows_when_killed: list[dict[str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: BaseFolder) -> Runs:
    base, folder = tiny_base_folder("eps"), tmp_path_factory.mktemp("runs")

    def job(case: str, kind: str, **more: Any) -> dict[str, Any]:
        return {"run": folder / kind / case, **COMMON, **CASES[case], **more}

    stop = {"kill": [2, [signal.SIGTERM]]}
    whole = [job(case, "whole") for case in CASES]
    stopped = [job(case, "parted", **stop) for case in CASES if case != "killed"]
    first = run_jobs(base, *whole, *stopped)
    killed = run_jobs(base, job("killed", "parted", kill=[3, [signal.SIGKILL]]))
    rows = rows_of(folder / "parted/killed")
    with (folder / "parted/killed/metrics.csv").open("a") as file:
        file.write("4,0.1,0.")  # a row cut short
    second = run_jobs(base, *[job(case, "parted", resume=True) for case in CASES])
    return Runs(folder, first, killed, second, rows)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.mark.parametrize("case", CASES)
def test_going_on_is_bit_equal_to_never_stopping(runs: Runs, case: str) -> None:
    assert runs.first.returncode == 0, runs.first.stderr
    assert runs.second.returncode == 0, runs.second.stderr
    whole, parted = runs.folder / "whole" / case, runs.folder / "parted" / case
    ends = [torch.load(run / "resume.ckpt", weights_only=True) for run in (whole, parted)]
    assert ends[0]["global_step"] == 5
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert not list(unequal(ends[0][part], ends[1][part], part))
    snapshots = [run / "snapshots/step-000005" for run in (whole, parted)]
    names = sorted(path.name for path in snapshots[0].glob("*.safetensors"))
    assert names == ["text_encoder.safetensors", "unet.safetensors"][case == "frozen" :]
    for name in names:
        one, other = (load_file(snapshot / name) for snapshot in snapshots)
        assert not list(unequal(one, other, name))
    assert rows_of(whole) == rows_of(parted)
    assert [row["step"] for row in rows_of(whole)] == list("12345")


def test_rows_after_the_resumed_step_were_there_and_are_written_anew(runs: Runs) -> None:
    assert runs.killed.returncode == -signal.SIGKILL
    assert [row["step"] for row in runs.rows_when_killed] == list("123")


def test_the_resume_state_holds_nothing_frozen(runs: Runs) -> None:
    state = torch.load(runs.folder / "whole/frozen/resume.ckpt", weights_only=True)
    assert all(key.startswith("trained.unet.") for key in state["state_dict"])
    state = torch.load(runs.folder / "whole/fp32/resume.ckpt", weights_only=True)
    parts = {key.split(".")[1] for key in state["state_dict"]}
    assert parts == {"unet", "text_encoder"}


def test_one_signal_saves_and_says_how_to_go_on(runs: Runs) -> None:
    assert f"python main.py --resume {runs.folder / 'parted/fp32'}" in runs.first.stderr
    assert "stopped after step 2" in runs.first.stderr
    assert "Traceback" not in runs.first.stderr


def test_two_signals_end_the_process_at_once(tmp_path: Path, tiny_base_folder: BaseFolder) -> None:
    job = {"run": tmp_path, "steps": 5, "kill": [1, [signal.SIGINT, signal.SIGINT]]}
    assert run_jobs(tiny_base_folder("eps"), job).returncode == -signal.SIGINT
    assert not (tmp_path / "resume.ckpt").exists()


def test_nothing_is_printed_but_log_lines(runs: Runs) -> None:
    assert runs.first.stdout == "" and runs.second.stdout == ""
    logged = [line for line in runs.second.stderr.splitlines() if line.startswith(LEVELS)]
    assert logged and not [line for line in logged if not line.startswith("INFO step ")]
