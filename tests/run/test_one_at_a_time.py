"""One folder, one run: the second is refused, readers and the run's other processes are not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import main
import scripts.sample
from ldm.config import load_config
from ldm.errors import UserError
from ldm.run.folder import claimed, is_first_process, process_count
from tests.workspace import Workspace

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from ldm.run.folder import claimed\n"
    "with claimed(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Have another process hold a folder."""
    started = []

    def start(run: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(run)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_is_let_go_of(tmp_path: Path, hold: Callable[[Path], subprocess.Popen]) -> None:
    for _ in range(2):
        with claimed(tmp_path), pytest.raises(UserError, match="is training in"), claimed(tmp_path):
            pass
    process = hold(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)), claimed(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_rank_counts_where_there_are_several(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    one, two = (load_config([], ["trainer.accelerator=cpu", f"trainer.devices={n}"]) for n in "12")
    assert is_first_process(one) and is_first_process(two)
    monkeypatch.setenv(name, "1")
    assert is_first_process(one) and not is_first_process(two)
    monkeypatch.setenv(name, "0")
    assert is_first_process(two)


def test_how_many_processes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    counts = {"auto": 3, "-1": 3, "2": 2, "0,": 1, "0,2": 2}
    for devices, count in counts.items():
        hardware = [f"trainer.devices='{devices}'", "trainer.nodes=2"]
        assert process_count(load_config([], hardware)) == 2 * count
        if count == 3:
            assert process_count(load_config([], [*hardware, "trainer.accelerator=cpu"])) == 2


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_a_process_alone_writes_whatever_its_rank(
    tmp_path: Path,
    tiny_base_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """As one of several runs that one srun starts."""
    monkeypatch.setenv(name, "3")
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    run = place.train("alone", trainer__devices=1)
    assert {"config.yaml", "run.json"} <= {path.name for path in run.iterdir()}
    with claimed(run):
        assert main.main(["--resume", str(run), "training.steps=3"]) == 2, "it is in use"
    assert main.main(["--resume", str(run), "training.steps=3"]) == 0


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), claimed(tmp_path / "file/run"):
        pass


def test_the_second_run_is_refused_and_pictures_are_drawn(
    tmp_path: Path,
    tiny_base_folder: Callable[[str], Path],
    hold: Callable[[Path], subprocess.Popen],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    run = place.train("busy", training__steps=1)
    process = hold(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main.main(["--resume", str(run), "training.steps=2"]) == 2
    assert "another process is training in" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main.main(["--resume", str(run), "training.steps=2", "--dry-run"]) == 0
    words = [
        "--run",
        run,
        "--prompt",
        "[V]",
        "--n",
        1,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    assert scripts.sample.main([str(word) for word in words]) == 0
    process.kill()
    process.wait()
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0


def test_a_run_holds_its_folder_from_first_to_last(
    tmp_path: Path, tiny_base_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.run import finish
    from ldm.run.job import Job

    place, refused = Workspace(tmp_path, tiny_base_folder("eps")), []

    def try_beside(run: Path) -> None:
        with pytest.raises(UserError, match="another process"), claimed(run):
            pass
        refused.append(run.name)

    fit, conclude = Job.fit, finish.conclude

    def fit_watched(job: Job) -> bool:
        try_beside(job.resume_state.run)
        return fit(job)

    def conclude_watched(config: object, run: Path, *more: object) -> bool:
        try_beside(run)
        return conclude(config, run, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "fit", fit_watched)
    monkeypatch.setattr(finish, "conclude", conclude_watched)
    run = place.train("new", training__steps=1)
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    assert refused == [run.name] * 4
