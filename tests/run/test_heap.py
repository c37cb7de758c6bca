"""Freed memory goes back to the system."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.config import load_config
from ldm.run import prepare
from tests.workspace import Workspace

# Large blocks and small ones in turn; the small ones stay. Prints MiB that stay of the large ones.
PROGRAM = """\
import psutil, torch
from ldm.run.memory.heap import return_large_blocks
if {called}:
    assert return_large_blocks()
torch.ones(2 ** 22).sum()
torch.empty(2 ** 22)  # 16 MiB, freed: where glibc is left alone, its limit is now above that
before, small = psutil.Process().memory_info().rss, []
for _ in range(3):
    large = []
    for place in range(20):
        large.append(torch.ones(2 ** 21 + 2 ** 12 * place))
        small.append(torch.ones(2 ** 12))
    del large
print((psutil.Process().memory_info().rss - before) / 2 ** 20)
"""


def left(called: bool, program: str = PROGRAM) -> float:
    """MiB that a process has more than before, when its blocks are freed."""
    words = [sys.executable, "-c", program.format(called=called)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_blocks_are_given_back() -> None:
    assert left(called=True) < 16 < left(called=False)


# Small blocks, of which one in a hundred stays. Prints MiB that stay of them.
FREED_BEFORE = """\
import psutil, torch
from ldm.run.memory.heap import return_large_blocks
before = psutil.Process().memory_info().rss
blocks = [torch.ones(2 ** 12) for _ in range(6400)]
kept = blocks[::100]
del blocks
if {called}:
    assert return_large_blocks()
print((psutil.Process().memory_info().rss - before) / 2 ** 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_was_freed_before_is_given_back_too() -> None:
    """A model's weights in another type, as they were loaded."""
    assert left(called=True, program=FREED_BEFORE) < 16 < left(called=False, program=FREED_BEFORE)


@pytest.mark.parametrize(("many", "asked"), [(prepare.MANY, 0), (100, 1)])
def test_for_large_models_alone(
    many: int,
    asked: int,
    tmp_path: Path,
    tiny_base_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With small ones it takes time, in drawing most, and there is little to be had."""
    calls: list[int] = []
    monkeypatch.setattr(prepare, "MANY", many)
    monkeypatch.setattr(prepare, "return_large_blocks", lambda: calls.append(1))
    words = Workspace(tmp_path, tiny_base_folder("eps")).words()
    prepare.prepare(load_config([Path(words[1])], words[2:]))
    assert len(calls) == asked


# Prints KiB of huge pages that a tensor of 64 MiB lies in.
HUGE = """\
import ldm, torch
from pathlib import Path
tensor = torch.ones(2 ** 24)
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")))
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not ENABLED.is_file() or "[never]" in ENABLED.read_text(), reason="a kernel with huge pages"
)
@pytest.mark.parametrize("wanted", [True, False])
def test_large_tensors_lie_in_huge_pages_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if not wanted:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    kib = left(called=True, program=HUGE)
    assert kib >= 62 * 2**10 if wanted else "[always]" in ENABLED.read_text() or kib < 2**10
