"""The rolling resume state: staged, verified, falling back, read without running code."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import ResumeIO, find_resume
from ldm.errors import UserError


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.full((64, 64), float(step))}}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        ResumeIO().save_checkpoint(state(step), run / "resume.ckpt")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_is_found_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert find_resume(tmp_path) is None
    save(tmp_path, 1, 2, 3)
    point = find_resume(tmp_path)
    assert point is not None and (point.step, point.path.name) == (3, "resume.ckpt")
    loaded = ResumeIO().load_checkpoint(point.path)
    assert torch.equal(loaded["state_dict"]["weight"], torch.full((64, 64), 3.0))
    previous = ResumeIO().load_checkpoint(tmp_path / "resume.previous.ckpt")
    assert previous["global_step"] == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"resume.ckpt", "resume.previous.ckpt", "resume.json"}


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_newest_falls_back_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "resume.ckpt"
    if how == "flipped":
        damage(newest)
    elif how == "missing":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[: 100 if how == "cut" else 0])
    with caplog.at_level(logging.WARNING):
        point = find_resume(tmp_path)
    assert point is not None and point.step == 1
    assert how == "missing" or f"{newest} is damaged" in caplog.text


def test_all_damaged_is_said(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for name in ("resume.ckpt", "resume.previous.ckpt"):
        damage(tmp_path / name)
    with pytest.raises(UserError, match=r"resume\.ckpt, resume\.previous\.ckpt"):
        find_resume(tmp_path)


@pytest.mark.parametrize("dies_in", ["torch.save", "listing", "first rename", "second rename"])
def test_dying_while_saving_leaves_a_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    save(tmp_path, 1, 2)
    renames = 0

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def rename(staged: Path, path: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == (1 if dies_in == "first rename" else 2):
            die()
        staged.rename(path)

    if dies_in == "torch.save":
        monkeypatch.setattr("ldm.checkpoint.resume.torch.save", die)
    elif dies_in == "listing":
        monkeypatch.setattr("ldm.checkpoint.resume.write_json", die)
    else:
        monkeypatch.setattr("ldm.checkpoint.resume.put_in_place", rename)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3)
    monkeypatch.undo()
    point = find_resume(tmp_path)
    assert point is not None and point.step == 2
    save(tmp_path, 4)  # and nothing is in the way of the next
    point = find_resume(tmp_path)
    assert point is not None and point.step == 4


def test_what_runs_code_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    torch.save({"global_step": 1, "path": Path("x")}, tmp_path / "resume.ckpt")
    with pytest.raises(Exception, match="(?i)weights.only"):
        ResumeIO().load_checkpoint(tmp_path / "resume.ckpt", weights_only=False)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/run/resume\.ckpt"):
        save(tmp_path / "file" / "run", 1)
