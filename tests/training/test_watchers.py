"""The watchers of the processes alone, around something that would wait for ever."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from ldm.training import Interrupt, Interrupted, make_trainer, ranks
from ldm.training.ranks import STOPPED_EARLY, how_it_ended, is_broken_connection

LIMIT = 60  # seconds in which a process has to end


class Alone:
    """A cluster environment in which nothing is left to be started."""

    creates_processes_externally = True

    def validate_settings(self, **_: int) -> None: ...


class Training:
    """What the watchers look at in a Trainer."""

    def __init__(self, step: int) -> None:
        self.global_step, self.max_steps, self.should_stop = step, 10, False


@dataclass
class Watched:
    """How a process ended that trains beside others."""

    status: int  # 3: by an error of its own, 4: Interrupted
    children: list[int]
    said: str


def watched(
    children: Sequence[str],
    training: Callable[[], object],
    step: int = 0,
    interrupt: Interrupt | None = None,
) -> Watched:
    """A forked process that trains at `step` beside others (shell commands), to its end."""
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 99
        try:
            environment: Any = Alone()
            given: Any = _SubprocessScriptLauncher(environment, 2, 1)
            launcher = ranks.WatchingLauncher(given, Path("RUN"), interrupt)
            launcher.children = [subprocess.Popen(["sh", "-c", command]) for command in children]
            pids = " ".join(str(process.pid) for process in launcher.children)
            os.write(write, f"{pids}\n".encode())
            ranks.log.addHandler(logging.StreamHandler(os.fdopen(write, "w")))
            trainer: Any = Training(step)
            launcher.launch(training, trainer=trainer)
            status = 0
        except SystemExit as end:
            status = int(str(end.code))
        except ValueError:
            status = 3
        except Interrupted:
            status = 4
        finally:
            os._exit(status)
    os.close(write)
    status = ended_by(child)
    with os.fdopen(read) as told:
        pids, _, said = told.read().partition("\n")
    return Watched(status, [int(pid) for pid in pids.split()], said)


def ended_by(child: int) -> int:
    """Exit status of a forked process, which is killed where it does not end."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the process did not end")


def wait() -> None:
    time.sleep(LIMIT)


def fail() -> None:
    raise ValueError("a cosmic ray")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the processes had found each other."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)


@pytest.fixture
def short_grace(met: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("end", "step"), [("exit 3", 0), ("kill -9 $$", 0), ("exit 0", 1), ("exit 130", 1)]
)
def test_nobody_waits_for_a_process_that_is_gone(end: str, step: int, short_grace: None) -> None:
    began = time.monotonic()
    ended = watched([end, "exec sleep 60"], wait, step)
    assert ended.status == 1 and time.monotonic() - began < 10
    assert "the process of rank 1" in ended.said and "python main.py --resume RUN" in ended.said
    assert gone(ended.children[1]), "the third one is ended, too"


def test_before_they_have_met_there_is_nothing_to_wait_for() -> None:
    began = time.monotonic()
    assert watched(["exit 3"], wait).status == 1
    assert time.monotonic() - began < ranks.GRACE_SECONDS - 5


# --- the user asked to stop before training -------------------------------------------------------


@pytest.mark.parametrize("end", ["exit 130", "kill -TERM $$", "exit 0"])
def test_a_stop_that_reached_another_process(end: str) -> None:
    began = time.monotonic()
    ended = watched([end, "exec sleep 60"], wait)
    assert (ended.status, ended.said) == (0, f"{STOPPED_EARLY % 'RUN'}\n")
    assert gone(ended.children[1]) and time.monotonic() - began < ranks.GRACE_SECONDS - 5


def stop_requested() -> Interrupt:
    interrupt = Interrupt()
    interrupt.requested = True
    return interrupt


def test_who_was_asked_to_stop_blames_nobody() -> None:
    ended = watched(["exit 1"], wait, interrupt=stop_requested())
    assert (ended.status, ended.said) == (0, f"{STOPPED_EARLY % 'RUN'}\n")


class Child:
    """A process that has ended, or not."""

    def __init__(self, status: int | None) -> None:
        self.poll = lambda: status


@pytest.mark.parametrize(
    ("statuses", "stopped"),
    [([3, 0], False), ([-9], False), ([None], False), ([None, 0], True), ([130, -2, -15], True)],
)
def test_a_crash_is_one_whoever_ends_well_beside_it(
    statuses: list[int | None], stopped: bool
) -> None:
    alone: Any = Alone()
    given = _SubprocessScriptLauncher(alone, 2, 1)
    launcher: Any = ranks.WatchingLauncher(given, Path("RUN"))
    launcher.children = [Child(status) for status in statuses]
    assert launcher._is_stopped_early() == stopped


def test_what_is_at_hand_may_be_finished(met: None) -> None:
    """The caller, who gets Interrupted, tells of it."""

    def finish() -> None:
        time.sleep(1)
        raise Interrupted

    ended = watched(["exit 0"], finish)
    assert (ended.status, ended.said) == (4, "")


@pytest.mark.parametrize("children", [["exit 0"], []])
def test_a_connection_that_breaks_after_a_stop(children: list[str], met: None) -> None:
    def lose() -> None:
        raise RuntimeError("gloo: Connection closed by peer")

    began = time.monotonic()
    ended = watched(children, lose, interrupt=None if children else stop_requested())
    assert (ended.status, ended.said) == (4, "")
    assert time.monotonic() - began < 4, "it is known why"


# --- the end --------------------------------------------------------------------------------------


def test_at_the_end_the_others_may_go_first(short_grace: None) -> None:
    assert watched(["exit 0"], lambda: time.sleep(2), step=10).status == 0


def test_nobody_stays_behind_the_first_process(
    short_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ranks.FIRST, str(os.getpid()))
    assert watched([], lambda: time.sleep(1)).status == 0, "it is there"
    monkeypatch.setenv(ranks.FIRST, "-1")  # nobody's
    assert watched([], wait).status == 1


def test_an_exception_ends_the_processes_beside_it() -> None:
    ended = watched(["trap '' TERM; sleep 60 & wait; sleep 60"], fail)
    assert ended.status == 3, "it is the exception that comes out"
    assert gone(ended.children[0])


@pytest.mark.parametrize("look", [0.0, 0.5])
def test_whom_a_process_ends_itself_it_does_not_blame(
    look: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it does, nor by a look at them that had begun before and lasts."""
    lost = ranks.WatchingLauncher.lost

    def slowly(launcher: ranks.WatchingLauncher) -> str | None:
        time.sleep(look)
        return lost(launcher)

    def fail_soon() -> None:
        time.sleep(1.5 * ranks.POLL_SECONDS)
        fail()

    monkeypatch.setattr(ranks.WatchingLauncher, "lost", slowly)
    hang_after_ending_children(1, monkeypatch)
    ended = watched(["exec sleep 60"], fail_soon, step=1)
    assert (ended.status, ended.said) == (3, "")


def hang_after_ending_children(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    end = ranks.WatchingLauncher._end_children

    def end_and_hang(launcher: ranks.WatchingLauncher) -> None:
        end(launcher)
        if threading.current_thread() is threading.main_thread():
            time.sleep(seconds)

    monkeypatch.setattr(ranks.WatchingLauncher, "_end_children", end_and_hang)


@pytest.mark.parametrize(("error", "status"), [(ValueError, 1), (Interrupted, 0)])
def test_a_process_that_hangs_at_its_end(
    error: type[Exception], status: int, short_grace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang_after_ending_children(10, monkeypatch)

    def end() -> None:
        raise error

    assert watched([], end).status == status


def test_the_watchers_know_where_the_stop_is_noted(tmp_path: Path) -> None:
    interrupt = Interrupt()
    hardware = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    trainer = make_trainer(tmp_path, 1, callbacks=[interrupt], hardware=hardware)
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, ranks.WatchingLauncher) and launcher.interrupt is interrupt


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
