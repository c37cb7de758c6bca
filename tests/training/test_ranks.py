"""Two processes that train together: when one meets its end, so does the run, and it can go on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from ldm.checkpoint import find_resume
from ldm.training import ranks
from ldm.training.ranks import how_it_ended, is_broken_connection
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
    ended = start([sys.executable, ROOT / "main.py", *place.words("--name", "whole", **SETTINGS)])
    assert ended.status == 0, ended.said
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
    resumed = start([sys.executable, ROOT / "main.py", "--resume", run])
    assert resumed.status == 0, resumed.said
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
    whole = start([sys.executable, ROOT / "main.py", *words])
    assert whole.status == 0, whole.said
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


# --- the watchers alone, around something that would wait for ever --------------------------------


class Alone:
    """A cluster environment in which nothing is left to be started."""

    creates_processes_externally = True

    def validate_settings(self, **_: int) -> None: ...


class Training:
    """What the watchers look at in a Trainer."""

    def __init__(self, step: int) -> None:
        self.global_step, self.max_steps, self.should_stop = step, 10, False


def watched(
    children: Sequence[str], training: Callable[[], object], step: int = 0
) -> tuple[int, list[int]]:
    """Exit status of a process that trains beside others (shell commands); its children's pids."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 99
        try:
            environment: Any = Alone()
            given: Any = _SubprocessScriptLauncher(environment, 2, 1)
            launcher = ranks.WatchingLauncher(given, Path("RUN"))
            launcher.children = [subprocess.Popen(["sh", "-c", command]) for command in children]
            os.write(write, " ".join(str(process.pid) for process in launcher.children).encode())
            trainer: Any = Training(step)
            launcher.launch(training, trainer=trainer)
            status = 0
        except SystemExit as end:
            status = int(str(end.code))
        except ValueError:
            status = 3
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(write)
    return status, [int(pid) for pid in os.read(read, 1000).split()]


def wait() -> None:
    time.sleep(30)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.5)


@pytest.mark.parametrize("end", ["exit 3", "kill -9 $$", "exit 0"])
def test_nobody_waits_for_a_process_that_is_gone(
    end: str, short_grace: None, capfd: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    status, (_, other) = watched([end, "exec sleep 30"], wait)
    assert status == 1 and time.monotonic() - began < 10
    assert not Path(f"/proc/{other}").exists(), "the third one is ended, too"


def test_at_the_end_the_others_may_go_first(short_grace: None) -> None:
    status, _ = watched(["exit 0"], lambda: time.sleep(2), step=10)
    assert status == 0


def test_nobody_stays_behind_the_first_process(
    short_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ranks.FIRST, str(os.getpid()))
    assert watched([], lambda: time.sleep(1))[0] == 0, "it is there"
    monkeypatch.setenv(ranks.FIRST, str(os.getppid()))
    assert watched([], wait)[0] == 1


def test_an_exception_ends_the_processes_beside_it() -> None:
    def fail() -> None:
        raise ValueError("a cosmic ray")

    status, (other,) = watched(["trap '' TERM; sleep 30 & wait; sleep 30"], fail)
    assert status == 3, "it is the exception that comes out"
    assert not Path(f"/proc/{other}").exists()


def test_lightning_does_not_watch_beside_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would kill this process before it could say why."""
    seen: list[str] = []

    def start_them(launcher: _SubprocessScriptLauncher) -> None:
        seen.extend((os.environ[ranks.FIRST], os.environ[ranks.RUN]))
        launcher.procs = [process]

    process: Any = object()
    environment: Any = Alone()
    monkeypatch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", start_them)
    given = _SubprocessScriptLauncher(environment, 2, 1)
    launcher = ranks.WatchingLauncher(given, Path("RUN"))
    launcher._call_children_scripts()
    assert launcher.children == [process] and launcher.procs == []
    assert seen == [str(os.getpid()), "RUN"]
    assert ranks.FIRST not in os.environ and ranks.RUN not in os.environ


def test_what_a_broken_connection_is() -> None:
    import torch

    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"
    assert is_broken_connection(RuntimeError(gloo))
    assert is_broken_connection(torch.distributed.DistBackendError("NCCL error"))
    assert not is_broken_connection(RuntimeError("a cosmic ray"))
    assert not is_broken_connection(ValueError("gloo"))
    assert how_it_ended(-9) == "was killed by SIGKILL"
    assert how_it_ended(2).startswith("ended with status 2")
