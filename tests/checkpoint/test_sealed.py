"""Files that know when they are damaged: snapshots' manifests and the lists of resume states."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ldm.checkpoint import (
    ResumeIO,
    find_resume,
    find_snapshot,
    has_snapshot,
    load_snapshot,
    save_snapshot,
)
from ldm.checkpoint.files import read_sealed, write_sealed
from ldm.errors import UserError

CONFIG = {
    "seed": 3,
    "prompt": "a \U0001f916 drawing",
    "rates": (1e-3, None),
    "words": {2: "b", 10: "a"},
}


def parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        return None


def damaged(path: Path, flips: int, cuts: int) -> Iterator[str]:
    """Damage the file in many ways, each time a bit flipped or the end cut off; then mend it."""
    whole, chance = path.read_bytes(), random.Random(0)
    for bit in chance.sample(range(8 * len(whole)), flips):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        yield f"bit {bit}"
    for end in chance.sample(range(len(whole)), cuts):
        path.write_bytes(whole[:end])
        yield f"cut at {end}"
    path.write_bytes(whole)


def test_what_is_sealed_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", CONFIG)
    assert read_sealed(tmp_path / "a.json") == json.loads(json.dumps(CONFIG))
    assert read_sealed(tmp_path / "b.json") is None
    others: list[Any] = [[], {}, None, {"seal": None}, {"seed": 3}]
    for other in others:
        (tmp_path / "b.json").write_text(json.dumps(other))
        assert read_sealed(tmp_path / "b.json") is None


# --- manifests ------------------------------------------------------------------------------------


def module() -> dict[str, nn.Module]:
    return {"unet": nn.Linear(2, 1)}


def test_no_damage_of_a_manifest_goes_unnoticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6):
        newest = save_snapshot(tmp_path / "snapshots", module(), CONFIG, step)
    manifest = newest / "manifest.json"
    whole = parsed(manifest)
    accepted = 0
    for how in damaged(manifest, flips=600, cuts=60):
        caplog.clear()
        found = find_snapshot(tmp_path, "last")
        assert has_snapshot(newest.parent, 6) == (found == newest)
        if found == newest:
            assert parsed(manifest) == whole, how
            load_snapshot(newest, module())
            accepted += 1
        else:
            assert found.name == "step-000003" and "trying step 3" in caplog.text, how
            with pytest.raises(UserError, match=r"manifest\.json is missing or damaged"):
                load_snapshot(newest, module())
    assert accepted < 20, "white space at most, and an end without its line feed"
    assert find_snapshot(tmp_path, "last") == newest


def test_a_manifest_of_another_snapshot_or_of_no_files(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, module(), {}, 6)
    moved = path.rename(tmp_path / "step-000007")
    with pytest.raises(UserError, match=r"step-000007 has another snapshot's .* of step 6"):
        load_snapshot(moved, module())
    empty = save_snapshot(tmp_path, {}, {}, 8)
    with pytest.raises(UserError, match="step-000008 is not a snapshot"):
        load_snapshot(empty, module())
    write_sealed(empty / "manifest.json", {"states": []})
    with pytest.raises(UserError, match="step-000008 is not a snapshot"):
        load_snapshot(empty, module())


# --- resume states --------------------------------------------------------------------------------


def save(run: Path, *steps: int) -> None:
    for step in steps:
        ResumeIO().save_checkpoint({"global_step": step}, run / "resume.ckpt")


@pytest.mark.parametrize("name", ["resume.json", "resume.copy.json"])
def test_damage_of_one_list_changes_nothing(tmp_path: Path, name: str) -> None:
    save(tmp_path, 4, 6)
    expected = find_resume(tmp_path)
    for how in damaged(tmp_path / name, flips=400, cuts=40):
        assert find_resume(tmp_path) == expected, how
    assert expected is not None and expected.step == 6


@pytest.mark.parametrize(
    ("was", "becomes"), [('"step": 6', '"step": 4'), ('"bytes": ', '"bytes": 1')]
)
def test_a_list_that_lies_is_not_believed(tmp_path: Path, was: str, becomes: str) -> None:
    save(tmp_path, 6)
    expected = find_resume(tmp_path)
    text = (tmp_path / "resume.json").read_text()
    assert was in text
    (tmp_path / "resume.json").write_text(text.replace(was, becomes))
    assert find_resume(tmp_path) == expected
    (tmp_path / "resume.copy.json").write_text(text.replace(was, becomes))
    with pytest.raises(UserError, match=r"resume\.json and resume\.copy\.json are missing or dam"):
        find_resume(tmp_path)
    save(tmp_path, 7)
    found = find_resume(tmp_path)
    assert found is not None and found.step == 7, "the next save mends the lists"
