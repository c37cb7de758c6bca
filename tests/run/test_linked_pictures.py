"""The base's pictures in a run's folder: these and no others, whole, whatever broke off before."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.evaluation.pictures import ABOUT, files_of, read_asked
from ldm.run.measure.evaluator import link

ASKED: list[dict[str, Any]] = [
    {"about": about, "prompt": "a robot", "seed": seed, "expected": {}, "half": ""}
    for about in ("subject", "class")
    for seed in (1, 2)
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return drawn(tmp_path / "source", "blue")


def drawn(folder: Path, colour: str) -> Path:
    (folder / "subject").mkdir(parents=True)
    (folder / "class").mkdir()
    (folder / ABOUT).write_text(json.dumps({"fingerprint": colour, "asked": ASKED}))
    for name in files_of(read_asked(folder)):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    return folder


def assert_same(source: Path, target: Path) -> None:
    names = [ABOUT, *files_of(read_asked(source))]
    found = [path for path in target.rglob("*") if path.is_file()]
    assert {path.relative_to(target).as_posix() for path in found} == {*names}
    for name in names[1:]:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name


@pytest.mark.parametrize("told", ["others", "nothing", "half a file"])
def test_pictures_of_others_do_not_stay(source: Path, tmp_path: Path, told: str) -> None:
    target = drawn(tmp_path / "target", "red")
    if told == "nothing":  # as after a kill between the removal of this file and of the rest
        (target / ABOUT).unlink()
    if told == "half a file":
        (target / ABOUT).write_text("{")
    (target / "class" / "0009.png").write_bytes(b"of more pictures")
    link(source, target)
    assert_same(source, target)


def test_a_damaged_picture_is_replaced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    link(source, target)
    picture = target / "class" / "0001.png"
    whole = picture.read_bytes()
    picture.unlink()
    picture.write_bytes(whole[:40])
    link(source, target)
    assert_same(source, target)


def test_where_links_cannot_be_made_a_copy_that_broke_off_leaves_no_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    def break_off(_: Path, to: Path) -> None:
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    target = tmp_path / "target"
    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", break_off)
        link(source, target)
    assert not list(target.rglob("*.png"))
    link(source, target)
    assert_same(source, target)
