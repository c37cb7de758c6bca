"""Class images: an interruption, another process or a larger count changes nothing."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.models.base import BaseModel, load_base
from ldm.randomness import seed_of
from ldm.sampling.metadata import read_settings
from ldm.sampling.prior import (
    ClassImageMaker,
    class_image_folder,
    class_image_settings,
    class_images,
    count_missing,
    make_class_images,
)

PROMPT = "a drawing of a robot"


@pytest.fixture(scope="module")
def base(tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(tiny_base_folder("v"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first index of every batch that is sampled."""
    made: list[int] = []
    original = ClassImageMaker.make

    def spy(maker: ClassImageMaker, number: int) -> Any:
        made.append(number * maker.batch)
        return original(maker, number)

    monkeypatch.setattr(ClassImageMaker, "make", spy)
    return made


def make(base: BaseModel, root: Path, count: int, **changes: Any) -> list[Path]:
    """`changes`: of the settings, of the batch, or of make_class_images' own arguments."""
    size = changes.pop("resolution", None) or base.default_resolution
    sampling: dict[str, Any] = {
        "seed": 0,
        "scale": 5.0,
        "steps": 2,
        "sampler": "dpmpp_2m",
        "size": size,
    }
    sampling |= {name: changes.pop(name) for name in [*sampling] if name in changes}
    settings = class_image_settings(**sampling)
    maker = ClassImageMaker(base, PROMPT, settings, changes.pop("batch", 3))
    return make_class_images(maker, count, root, **changes)


def contents(paths: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_made_once_with_provenance(base: BaseModel, tmp_path: Path, batches: list[int]) -> None:
    paths = make(base, tmp_path, 5, sampler="euler_a", scale=3.0)
    assert [path.name for path in paths] == [f"{i:05d}.png" for i in range(5)]
    assert len(set(contents(paths).values())) == 5
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [
        *(path.name for path in paths),
        "class_images.json",
    ]
    settings = read_settings(paths[4])
    wanted = {"prompt": PROMPT, "sampler": "euler_a", "scale": 3.0, "steps": 2, "index": 4}
    assert wanted.items() <= settings.items()
    assert settings["fingerprint"] == base.fingerprint
    assert settings["seed"] == seed_of(0, "class_image", index=4)
    assert Image.open(paths[0]).size == (32, 32)
    assert batches == [0, 3]
    assert make(base, tmp_path, 5, sampler="euler_a", scale=3.0) == paths
    assert batches == [0, 3]


def test_provenance_makes_the_picture_again(base: BaseModel, tmp_path: Path) -> None:
    import numpy as np

    from ldm.sampling.generate import generate

    path = make(base, tmp_path, 2)[1]
    s = read_settings(path)
    keys = ("negative", "scale", "steps", "sampler", "height", "width")
    again = next(generate(base, [s["prompt"]], [s["seed"]], **{key: s[key] for key in keys}))
    difference = np.asarray(again, np.int16) - np.asarray(Image.open(path), np.int16)
    assert np.abs(difference).max() <= 1


def test_unfinished_batch_is_made_again_whole(
    base: BaseModel, tmp_path: Path, batches: list[int]
) -> None:
    wanted = contents(make(base, tmp_path / "whole", 8))
    root = tmp_path / "interrupted"

    def interrupt(done: int, total: int) -> None:
        assert total == 8
        if done == 5:  # in the middle of the second batch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(base, root, 8, progress=interrupt)
    (unwritten,) = root.rglob("00005.png")  # by the thread, or not: as a kill would have it
    unwritten.unlink()
    batches.clear()
    assert contents(make(base, root, 8)) == wanted
    assert batches == [3, 6]


def test_damaged_pictures_are_made_again(
    base: BaseModel, tmp_path: Path, batches: list[int]
) -> None:
    paths = make(base, tmp_path, 7)
    wanted = contents(paths)
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    paths[4].write_bytes(b"no picture")
    Image.new("RGB", (16, 16)).save(paths[6])  # of another size
    (paths[0].parent / ".00009.png.123").write_bytes(b"left behind by a kill")
    assert len(class_images(paths[0].parent, size=32)) == 4
    batches.clear()
    assert count_missing(paths[0].parent, 7, batch=3, size=32) == 7
    assert contents(make(base, tmp_path, 7)) == wanted
    assert batches == [0, 3, 6]


def test_topping_up(base: BaseModel, tmp_path: Path, batches: list[int]) -> None:
    first = contents(make(base, tmp_path, 4))
    batches.clear()
    more = make(base, tmp_path, 8)
    assert batches == [3, 6]
    assert first.items() <= contents(more).items()
    assert contents(more) == contents(make(base, tmp_path / "at once", 8))
    batches.clear()
    assert make(base, tmp_path, 2) == more  # all that are there are used
    assert not batches


def test_processes_share_without_doubles(
    base: BaseModel, tmp_path: Path, batches: list[int]
) -> None:
    wanted = contents(make(base, tmp_path / "one", 11))
    batches.clear()
    shares = []
    for rank in (1, 0, 2):
        make(base, tmp_path / "three", 11, rank=rank, world=3)
        shares.append(list(batches))
        batches.clear()
    assert shares == [[3], [0, 9], [6]]
    assert contents(make(base, tmp_path / "three", 11)) == wanted
    assert not batches


def test_folder_is_of_base_prompt_and_settings(base: BaseModel, tmp_path: Path) -> None:
    settings = {"seed": 0, "steps": 2}
    folders = {
        class_image_folder(tmp_path, "abc", PROMPT, settings),
        class_image_folder(tmp_path, "abd", PROMPT, settings),
        class_image_folder(tmp_path, "abc", PROMPT + "!", settings),
        class_image_folder(tmp_path, "abc", PROMPT, settings | {"steps": 3}),
    }
    assert len(folders) == 4
    assert all(folder.name.startswith("a-drawing-of-a-robot-") for folder in folders)
    assert class_image_folder(tmp_path, "abc", "写真/..", settings).parent == tmp_path
    used = {
        make(base, tmp_path, 1, **change)[0].parent for change in ({}, {"seed": 1}, {"batch": 2})
    }
    assert len(used) == 2  # batch size is not part of what a picture is


def test_what_cannot_be(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="count: 0"):
        make(base, tmp_path, 0)
    with pytest.raises(UserError, match="batch: 0"):
        make(base, tmp_path, 2, batch=0)
    with pytest.raises(UserError, match="no sampler 'magic'"):
        make(base, tmp_path, 2, sampler="magic")
    assert not list(tmp_path.iterdir())  # refused before anything is begun
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file.*prior\.root"):
        make(base, tmp_path / "file", 2)
