"""Two processes that train together: when one meets its end, so does the run, and it can go on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import main
from ldm.checkpoint import find_resume
from ldm.training.ranks import GRACE_SECONDS, STOPPED_EARLY
from tests.forked import forked, ranks
from tests.workspace import Workspace, difference

ROOT = Path(__file__).parent.parent.parent
TROUBLED = Path(__file__).parent / "troubled.py"
SETTINGS = {
    "prior__count": 5,
    "training__steps": 5,
    "training__save_every": 2,
    "snapshots__every": 5,
    "trainer__strategy": "ddp",
    "trainer__devices": 2,
}
LIVE = {**SETTINGS, "prior__images": "live", "prior__count": 3, "prior__uses": 1}
LIMIT = 60  # seconds in which the others have to end


@dataclass
class Ended:
    status: int
    said: str
    seconds: float  # from the trouble to the end
    left: list[str]  # of its process group


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("ranks"), tiny_base_folder("eps"))


@pytest.fixture(scope="module")
def undisturbed(place: Workspace) -> Path:
    ended = forked(main.main, place.words("--name", "whole", **SETTINGS), told=ranks(2))
    assert ended.returncode == 0, ended.stderr
    return run_of(place, "whole")


def run_of(place: Workspace, name: str) -> Path:
    (run,) = place.logs.glob(f"*_{name}")
    return run


def start(command: list[object], trouble: str = "") -> Ended:
    """Run a command in a process group of its own to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TROUBLE": trouble}
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=300)  # until the last of them has closed its output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    ended = time.time()
    began = [float(line.split()[1]) for line in said.splitlines() if line.startswith("TROUBLE ")]
    time.sleep(0.5)
    return Ended(process.returncode, said, ended - min(began, default=ended), alive(process.pid))


def alive(group: int) -> list[str]:
    """Processes of a group that are not yet dead."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue  # gone meanwhile
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


def check_end(ended: Ended) -> None:
    assert ended.status != 0, ended.said
    assert ended.seconds < LIMIT, ended.said
    assert not ended.left


def go_on(place: Workspace, name: str, undisturbed: Path) -> None:
    """Resume: it ends, by not a bit, anywhere else than the run that nothing happened to."""
    run = run_of(place, name)
    resumed = forked(main.main, ["--resume", str(run)], told=ranks(2))
    assert resumed.returncode == 0, resumed.stderr
    for part in ("unet", "text_encoder"):
        assert difference(run, undisturbed, step=5, part=part) == 0


def test_a_killed_process_ends_the_run_which_can_go_on(place: Workspace, undisturbed: Path) -> None:
    words = place.words("--name", "one", **SETTINGS)
    ended = start([sys.executable, TROUBLED, *words], "1 4 kill")
    check_end(ended)
    assert "the process of rank 1" in ended.said and "was killed by SIGKILL" in ended.said
    assert f"--resume {run_of(place, 'one')}" in ended.said
    assert "Traceback" not in ended.said, "what a broken connection says helps nobody"
    go_on(place, "one", undisturbed)


@pytest.mark.slow
def test_the_first_process_is_killed(place: Workspace, undisturbed: Path) -> None:
    words = place.words("--name", "zero", **SETTINGS)
    ended = start([sys.executable, TROUBLED, *words], "0 4 kill")
    check_end(ended)
    assert "the first process is gone" in ended.said and "Traceback" not in ended.said
    assert f"--resume {run_of(place, 'zero')}\n" in ended.said
    go_on(place, "zero", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_while_class_images_are_made(rank: int, place: Workspace, undisturbed: Path) -> None:
    name = f"images{rank}"
    settings = {**SETTINGS, "prior__root": place.folder / name}
    words = place.words("--name", name, **settings)
    ended = start([sys.executable, TROUBLED, *words], f"{rank} class-images kill")
    check_end(ended)
    gone = "the first process is gone" if rank == 0 else "the process of rank 1"
    assert gone in ended.said
    go_on(place, name, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_one_process_ends_both_and_is_shown(rank: int, place: Workspace) -> None:
    words = place.words("--name", f"raises{rank}", **SETTINGS)
    ended = start([sys.executable, TROUBLED, *words], f"{rank} 3 raise")
    check_end(ended)
    assert ended.said.count("RuntimeError: a cosmic ray") == 1
    assert "in meet" in ended.said, "with its traceback"
    assert "gloo" not in ended.said


def check_stopped_early(ended: Ended, run: Path) -> None:
    """As one process ends that is stopped there: at once, with status 0, and nobody is to blame."""
    assert ended.status == 0 and not ended.left, ended.said
    assert ended.said.count(f"{STOPPED_EARLY % run}\n") == 1, ended.said
    assert "so training stops" not in ended.said and "Traceback" not in ended.said
    assert ended.seconds < GRACE_SECONDS


def test_ctrl_c_while_the_processes_start(place: Workspace) -> None:
    words = place.words("--name", "early", **SETTINGS)
    ended = start([sys.executable, TROUBLED, *words], "1 start interrupt")
    check_stopped_early(ended, run_of(place, "early"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_while_class_images_are_made(rank: int, place: Workspace, undisturbed: Path) -> None:
    name = f"ctrl-c{rank}"
    words = place.words("--name", name, **{**SETTINGS, "prior__root": place.folder / name})
    ended = start([sys.executable, TROUBLED, *words], f"{rank} class-images interrupt")
    check_stopped_early(ended, run_of(place, name))
    go_on(place, name, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_while_waiting_for_class_images(rank: int, place: Workspace) -> None:
    """A signal reaches one of them, in the midst of a step: together they save, and end well."""
    words = place.words("--name", f"live{rank}", **{**LIVE, "training__save_every": 100})
    ended = start([sys.executable, TROUBLED, *words], f"{rank} {rank + 4} stop")
    run = run_of(place, f"live{rank}")
    assert ended.status == 0 and not ended.left, ended.said
    assert ended.said.count("stopped after step") == 1, ended.said
    assert ended.said.count(f"go on with: python main.py --resume {run}\n") == 1
    assert "Traceback" not in ended.said
    point = find_resume(run)
    assert point is not None and 0 < point.step < 5
    words = place.words("--name", f"whole-live{rank}", **LIVE)
    whole = forked(main.main, words, told=ranks(2))
    assert whole.returncode == 0, whole.stderr
    go_on(place, f"live{rank}", run_of(place, f"whole-live{rank}"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun(rank: int, place: Workspace, undisturbed: Path) -> None:
    name = f"torchrun{rank}"
    words = place.words("--name", name, **SETTINGS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = start([*torchrun, TROUBLED, *words], f"{rank} 4 kill")
    check_end(ended)
    assert "another process is gone" in ended.said
    run = run_of(place, name)
    assert f"--resume {run}\n" in ended.said
    resumed = start([*torchrun, ROOT / "main.py", "--resume", run])
    assert resumed.status == 0, resumed.said
    assert difference(run, undisturbed, step=5) == 0
