"""Run a command and see what it took; run several in turn."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Runs a command and tells, in a last line, the most memory it had. From a small process: a child's
# most counts what its parent had when it was forked.
WRAPPER = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
# As well, but looks fifty times a second at the memory that no file is mapped into, and tells its
# most before that. It sees the end of a command late, and takes some of the machine: not for times.
WATCHER = """\
import resource, subprocess, sys, time
child, most = subprocess.Popen(sys.argv[1:]), 0
while child.poll() is None:
    try:
        with open(f"/proc/{child.pid}/status") as file:
            held = [line.split()[1] for line in file if line.startswith("RssAnon")]
    except OSError:
        held = []
    most = max(most, *map(int, held), 0)
    time.sleep(0.02)
print(most)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(child.returncode)
"""
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Ran:
    """A command that has ended well."""

    began: float  # seconds since 1970
    seconds: float  # from its start to its end
    peak_gib: float  # the most resident memory, by the operating system's account
    output: str  # watched: its last line is the most anonymous memory, KiB


def run(command: Sequence[str | Path], python_path: str = "", watched: bool = False) -> Ran:
    """Run it in the project's folder. SystemExit, with the end of what it said, where it fails."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if python_path:
        environment["PYTHONPATH"] = python_path
    with tempfile.TemporaryFile("w+") as said:
        began = time.time()
        wrapper = WATCHER if watched else WRAPPER
        words = [sys.executable, "-S", "-c", wrapper, *map(str, command)]
        status = subprocess.call(words, cwd=ROOT, env=environment, stdout=said, stderr=said)
        seconds = time.time() - began
        said.seek(0)
        output = said.read()
    if status:
        raise SystemExit(f"{' '.join(map(str, command))}\n{output[-3000:]}")
    *lines, most = output.splitlines()
    kib = int(most) / (1024 if sys.platform == "darwin" else 1)
    return Ran(began, seconds, kib / 2**20, "\n".join(lines))


def step_times(folder: Path) -> list[float]:
    """When each optimizer step was logged, seconds since 1970, by the run's TensorBoard file.

    The project and diffusers' script both log "loss" once a step: one clock for both.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    times: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag in ("loss", "train_loss"):
                times |= {event.step: event.wall_time for event in events.Scalars(tag)}
    if not times:
        raise SystemExit(f"{folder}: no step was logged")
    return [times[step] for step in sorted(times)]


def seconds_per_step(folder: Path, warm: int) -> float:
    """The median over the steps after the first `warm`."""
    times = step_times(folder)[warm:]
    return statistics.median(
        later - sooner for sooner, later in zip(times, times[1:], strict=False)
    )


def in_turn(
    contenders: Mapping[str, Callable[[], Numbers]],
    rounds: int,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, list[Numbers]]:
    """What each contender gives in each round; they alternate, and every second round runs back.

    So whatever else the machine does meets them all.
    """
    found: dict[str, list[Numbers]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            numbers = contenders[name]()
            found[name].append(numbers)
            told = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            tell(f"round {turn + 1} of {rounds}, {name}: {told}")
    return found


def ratio_of(over: Sequence[Numbers], under: Sequence[Numbers], key: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a[key] / b[key] for a, b in zip(over, under, strict=True))
