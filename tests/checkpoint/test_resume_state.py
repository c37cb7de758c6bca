"""The rolling resume state: staged, read back, falling back, read without running code."""

import errno
import hashlib
import json
import logging
import os
import pickle
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import ResumeIO, clear_leftovers, files, find_resume, set_aside
from ldm.checkpoint.files import write_sealed, write_verified
from ldm.checkpoint.resume import what_is_lost
from ldm.errors import UserError
from tests.checkpoint.killing import dies_at, forks

ROOT = Path(__file__).parents[2]
FILES = ("resume.ckpt", "resume.previous.ckpt", "resume.json", "resume.copy.json")


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((64, 64), float(step))}}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        ResumeIO().save_checkpoint(state(step), run / "resume.ckpt")


def found(run: Path) -> int | None:
    """The step of the state that is found, and that it is whole."""
    point = find_resume(run)
    if point is None:
        return None
    weight = ResumeIO().load_checkpoint(point.path)["state_dict"]["weight"]
    assert (weight == point.step).all()
    return point.step


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_the_newest_is_found_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert find_resume(tmp_path) is None
    save(tmp_path, 1, 2, 3)
    point = find_resume(tmp_path)
    assert point is not None and (point.step, point.path.name) == (3, "resume.ckpt")
    assert found(tmp_path) == 3 and point.damaged == []
    previous = ResumeIO().load_checkpoint(tmp_path / "resume.previous.ckpt")
    assert previous["global_step"] == 2
    assert set(contents(tmp_path)) == set(FILES)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing", "a folder"])
def test_a_damaged_newest_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "resume.ckpt"
    if how == "flipped":
        damage(newest)
    elif how in ("missing", "a folder"):
        newest.unlink()
        if how == "a folder":
            newest.mkdir()
    else:
        newest.write_bytes(newest.read_bytes()[: 100 if how == "cut" else 0])
    before = sorted(tmp_path.iterdir())
    with caplog.at_level(logging.WARNING):
        point = find_resume(tmp_path)
    assert point is not None and point.step == 1
    assert how == "missing" or f"{newest} is damaged" in caplog.text
    assert point.damaged == ([] if how == "missing" else [newest])
    assert sorted(tmp_path.iterdir()) == before, "looking changes nothing"


def test_a_damaged_newest_never_replaces_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ResumeIO()
    for step in (1, 2):
        writer.save_checkpoint(state(step), tmp_path / "resume.ckpt")
    damage(tmp_path / "resume.ckpt")  # beneath the very process that wrote it
    broken = (tmp_path / "resume.ckpt").read_bytes()
    writer.save_checkpoint(state(3), tmp_path / "resume.ckpt")
    assert "set aside as resume.damaged.ckpt" in caplog.text
    assert (tmp_path / "resume.damaged.ckpt").read_bytes() == broken
    assert found(tmp_path) == 3
    (tmp_path / "resume.ckpt").unlink()
    assert found(tmp_path) == 1


def test_one_damaged_state_is_kept_aside(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
        damage(tmp_path / "resume.ckpt")
        set_aside(tmp_path / "resume.ckpt")
    (kept,) = tmp_path.glob("*damaged*")
    assert kept.name == "resume.damaged.ckpt"
    assert find_resume(tmp_path) is None, "it is never used"


@pytest.mark.parametrize("name", FILES)
def test_any_one_file_may_be_cut_anywhere(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1, 2)
    whole = (tmp_path / name).read_bytes()
    offsets = random.Random(name).sample(range(len(whole)), 8)
    for offset in (0, len(whole) - 1, *offsets):
        (tmp_path / name).write_bytes(whole[:offset])
        assert found(tmp_path) == (1 if name == "resume.ckpt" else 2), offset
    (tmp_path / name).unlink()
    assert found(tmp_path) == (1 if name == "resume.ckpt" else 2)
    save(tmp_path, 3)  # and the next one mends the lists
    for newer in ("resume.ckpt", name):
        (tmp_path / newer).unlink(missing_ok=True)
    assert found(tmp_path) in (1, 2, None if name == "resume.previous.ckpt" else 2)


def test_when_none_is_good_each_is_named_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "resume.ckpt")
    (tmp_path / "resume.previous.ckpt").write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        find_resume(tmp_path)
    newest, previous = str(caught.value).splitlines()[1:]
    assert "resume.ckpt: its sha256" in newest
    assert "resume.previous.ckpt: its size, 5 bytes" in previous
    for name in ("resume.json", "resume.copy.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"resume\.ckpt: cannot be verified, resume\.json and"):
        find_resume(tmp_path)


@pytest.mark.parametrize(
    "entry", [{}, [3], [{"step": 1}], [{"step": "x", "bytes": 1, "sha256": []}]]
)
def test_a_list_that_says_nothing(tmp_path: Path, entry: Any) -> None:
    save(tmp_path, 1)
    (tmp_path / "resume.json").write_text(json.dumps(entry))
    assert found(tmp_path) == 1


@forks
def test_dying_at_any_instant_leaves_a_good_state(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    call, step = 0, 3
    while dies_at(call, partial(save, tmp_path, step)):
        assert found(tmp_path) in (step, step - 1), f"killed before call {call}"
        clear_leftovers(tmp_path)
        assert found(tmp_path) in (step, step - 1)
        assert set(contents(tmp_path)) <= set(FILES)
        save(tmp_path, step)
        call, step = call + 1, step + 1
    assert call > 15, "there were that many instants"
    assert found(tmp_path) == step


@forks
def test_dying_often_at_the_same_place_does_not_wear_out_the_list(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)

    def listed() -> list[int]:
        content = json.loads((tmp_path / "resume.copy.json").read_text())
        return [entry["step"] for entry in content["states"]]

    call = 0
    while 3 not in listed():  # until it dies between listing a state and renaming it
        assert dies_at(call, lambda: save(tmp_path, 3))
        call += 1
    for step in range(4, 12):
        assert dies_at(call - 1, partial(save, tmp_path, step))
        assert step in listed() and found(tmp_path) == 2
    (tmp_path / "resume.ckpt").unlink()
    assert found(tmp_path) == 1


class Failing:
    """A file that cannot be written beyond some bytes, or keeps what it was not given."""

    def __init__(self, file: Any, error: int | None) -> None:
        self.file, self.error, self.left = file, error, 8000

    def write(self, data: Any) -> int:
        self.left -= memoryview(data).nbytes
        if self.left < 0 and self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return self.file.write(bytes(memoryview(data).nbytes) if self.left < 0 else data)

    def flush(self) -> None:
        self.file.flush()

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EFBIG, "File too large"),
        (errno.EIO, "Input/output error"),
        (None, "what is read back is not what was written"),
    ],
)
def test_a_failed_save_says_so_and_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None, said: str
) -> None:
    save(tmp_path, 1, 2)
    before = contents(tmp_path)
    opened = Path.open

    def open_failing(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = opened(path, mode, *more, **options)
        return Failing(file, error) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", open_failing)
    with pytest.raises(UserError) as caught:
        save(tmp_path, 3)
    message = str(caught.value)
    assert message.startswith(f"cannot save {tmp_path / 'resume.ckpt'}: {said}")
    assert "; the last save is of step 2, steps lost: 1; go on with: " in message
    assert message.endswith(f"python main.py --resume {tmp_path}")
    monkeypatch.undo()
    assert contents(tmp_path) == before and found(tmp_path) == 2


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """As a full disk does, it fails in the middle of a tensor, inside PyTorch's zip writer."""
    save(tmp_path, 1)
    before = contents(tmp_path)
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from ldm.checkpoint import ResumeIO\n"
        "from ldm.errors import exit_status\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "content = {'global_step': 2, 'weight': torch.ones(100, 1000)}\n"
        "path = Path(sys.argv[1]) / 'resume.ckpt'\n"
        "sys.exit(exit_status(lambda: ResumeIO().save_checkpoint(content, path)))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: cannot save {tmp_path / 'resume.ckpt'}: File too large")
    assert contents(tmp_path) == before


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = contents(tmp_path)
    with pytest.raises(AttributeError):  # as pickle says of what it cannot
        ResumeIO().save_checkpoint(state(2) | {"f": lambda: 1}, tmp_path / "resume.ckpt")
    assert contents(tmp_path) == before


def test_what_was_written_is_what_is_hashed(tmp_path: Path) -> None:
    content = write_verified(tmp_path / "x", lambda file: [file.write(b"ab"), file.write(b"c")])
    assert content == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "old torch.save"])
def test_what_would_run_code_is_refused(tmp_path: Path, how: str) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    save(run, 1)
    evil, path = {"global_step": 2, "state_dict": Malicious(mark)}, run / "resume.ckpt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "torch.save")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"step": 2, "bytes": path.stat().st_size, "sha256": digest}
    write_sealed(run / "resume.json", {"states": [entry]})
    point = find_resume(run)
    assert point is not None and point.path == path, "it is listed: only its content gives it away"
    with pytest.raises(UserError, match=rf"{path} is no resume state .* not loaded"):
        ResumeIO().load_checkpoint(path, weights_only=False)
    assert not mark.exists()
    if how == "torch.save":
        torch.load(path, weights_only=False)
        assert mark.exists(), "it would have"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot save .*file/run/resume\.ckpt") as caught:
        save(tmp_path / "file" / "run", 3)
    assert "; nothing was saved yet, steps lost: 3; go on with: " in str(caught.value)


def test_what_is_lost_where_nothing_good_is_left(tmp_path: Path) -> None:
    save(tmp_path, 1)
    damage(tmp_path / "resume.ckpt")
    assert "no resume state" in what_is_lost(tmp_path, 2)


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1)
    stay = {*contents(tmp_path), ".lock", "snapshots", "samples"}
    for name in ("snapshots", "samples"):
        (tmp_path / name).mkdir()
    (tmp_path / ".lock").touch()
    for name in (".resume.ckpt.staging", ".config.yaml.staging", "samples/.a.png.staging"):
        (tmp_path / name).write_bytes(b"half")
    for name in (".step-000001.staging", ".step-000002.removed", ".step-000003.replaced"):
        (tmp_path / "snapshots" / name).mkdir()
    (tmp_path / "snapshots/step-000003").mkdir()
    assert found(tmp_path) == 1, "a staging file is never counted"
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == stay
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-000003"]
    assert not list((tmp_path / "samples").iterdir())


def test_what_is_saved_is_not_copied_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MiB take less than 16 MiB while they are written and read back."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("the system does not tell how much memory a process has")
    seen: list[float] = []

    def look(original: Any) -> Any:
        def looked(self: Any, data: Any) -> Any:
            seen.append(int(status.read_text().split()[1]) * 4096 / 2**20)
            return original(self, data)

        return looked

    monkeypatch.setattr(files._HashingFile, "write", look(files._HashingFile.write))
    large = {"step": 1, "state_dict": {str(n): torch.ones(1024, 512) for n in range(32)}}
    save(tmp_path, 1)  # whatever the first one imports
    seen.clear()
    ResumeIO().save_checkpoint({**state(2), **large}, tmp_path / "resume.ckpt")
    assert len(seen) > 32 and max(seen) - seen[0] < 16
