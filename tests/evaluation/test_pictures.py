"""What is asked, and the pictures that answer: the same ones, whatever happens on the way."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation import pictures
from ldm.evaluation.oracle import Question
from ldm.evaluation.pictures import Asked, ask, ask_class_again, draw, files_of, read_asked
from ldm.models.base import BaseModel, load_base
from ldm.sampling.metadata import read_settings

SETTINGS: dict[str, Any] = {"steps": 2, "scale": 5.0, "batch": 3}
QUESTIONS = [
    Question("class", "a drawing of a robot", {"class": "robot"}),
    Question("subject", "a drawing of sks robot", {}),
    Question("subject", "a drawing of sks robot in the snow", {"setting": "in the snow"}),
    Question("subject", "a drawing of sks robot on the beach", {"setting": "on the beach"}),
    Question("unrelated", "a photo of a dog", {"class": "dog"}),
]


@pytest.fixture(scope="module")
def base(tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(tiny_base_folder("v"))


def make(base: BaseModel, folder: Path, asked: list[Asked], **changes: Any) -> list[Path]:
    arguments = {"fingerprint": base.fingerprint, "name": "tiny"} | changes
    settings = SETTINGS | arguments.pop("settings", {})
    return draw(folder, base, asked, settings, **arguments)


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in paths}


# --- what is asked


def test_subject_prompts_are_halved_and_the_rest_is_of_both() -> None:
    asked = ask(QUESTIONS, 2, 3, 1, seed=0)
    assert [one.about for one in asked] == ["subject"] * 6 + ["class"] * 3 + ["unrelated"]
    halves = {one.prompt.removeprefix("a drawing of sks robot"): one.half for one in asked[:6]}
    assert halves == {"": "choosing", " in the snow": "reporting", " on the beach": "choosing"}
    assert {one.half for one in asked[6:]} == {""}
    assert asked[2].expected == {"setting": "in the snow"}
    assert files_of(asked)[5:] == [
        "subject/005.png",
        *(f"class/000{number}.png" for number in range(3)),
        "unrelated/000.png",
    ]
    assert {one.half for one in ask(QUESTIONS[:2], 2, 3, 1, seed=0)} == {""}, "one prompt: of both"


def test_a_seed_depends_on_the_place_of_its_prompt_and_picture_alone() -> None:
    few, many = ask(QUESTIONS, 2, 3, 1, seed=7), ask(QUESTIONS, 5, 40, 2, seed=7)
    seeds = {(one.prompt, one.seed) for one in many}
    assert {(one.prompt, one.seed) for one in few} < seeds
    assert seeds.isdisjoint((one.prompt, one.seed) for one in ask(QUESTIONS, 5, 40, 2, seed=8))


def test_no_two_pictures_share_a_seed_nor_one_with_a_grid() -> None:
    asked = ask(QUESTIONS, 8, 512, 8, seed=0)
    again = ask_class_again(QUESTIONS, 512, seed=0)
    seeds = [one.seed for one in (*asked, *again)]
    assert len(seeds) == 3 * 8 + 512 + 8 + 512
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) > 2**32, "grids count from a small number"
    assert {one.about for one in again} == {"class"}


def test_class_images_are_dealt_to_the_class_prompts() -> None:
    questions = [Question("class", "a", {}), Question("class", "b", {})]
    assert [one.prompt for one in ask(questions, 1, 5, 1, seed=0)] == ["a", "b", "a", "b", "a"]


def test_an_unknown_kind_of_question() -> None:
    with pytest.raises(ValueError, match="backdrop"):
        ask([Question("backdrop", "a sky", {})], 1, 1, 1, seed=0)


# --- drawing


def test_pictures_say_what_they_are(base: BaseModel, tmp_path: Path) -> None:
    asked = ask(QUESTIONS, 1, 2, 1, seed=0)
    told: list[tuple[int, int]] = []
    paths = make(base, tmp_path, asked, fingerprint="f", progress=lambda *n: told.append(n))
    assert [str(path.relative_to(tmp_path)) for path in paths] == files_of(asked)
    assert told == [(number, 6) for number in range(1, 7)]
    settings = read_settings(paths[1])
    wanted = {"prompt": asked[1].prompt, "seed": asked[1].seed, "fingerprint": "f", "steps": 2}
    assert wanted.items() <= settings.items()
    assert settings["model"] == "tiny" and settings["precision"] == "fp32"
    about = json.loads((tmp_path / "pictures.json").read_text())
    assert about["fingerprint"] == "f" and about["versions"]["torch"]
    assert read_asked(tmp_path) == asked
    assert not list(tmp_path.rglob("*.staging"))


def test_what_is_there_is_not_made_again(base: BaseModel, tmp_path: Path) -> None:
    asked = ask(QUESTIONS, 1, 2, 1, seed=0)
    before = contents(make(base, tmp_path, asked))
    times = {path: os.stat(path).st_mtime_ns for path in before}
    changed = {"batch": 2, "scale": 5}  # what changes nothing but rounding; another spelling
    assert contents(make(base, tmp_path, asked, settings=changed)) == before
    assert {path: os.stat(path).st_mtime_ns for path in before} == times


def test_an_interrupted_drawing_goes_on_to_the_same_pictures(
    base: BaseModel, tmp_path: Path
) -> None:
    asked = ask(QUESTIONS, 2, 3, 1, seed=0)
    whole = make(base, tmp_path / "whole", asked)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(base, tmp_path / "stopped", asked, progress=stop)
    assert len(list((tmp_path / "stopped").rglob("*.png"))) == 5
    told: list[tuple[int, int]] = []
    paths = make(base, tmp_path / "stopped", asked, progress=lambda *n: told.append(n))
    assert told == [(number, 10) for number in range(4, 11)], "after the one whole batch"
    assert [*contents(paths).values()] == [*contents(whole).values()]


def test_a_damaged_picture_is_made_again(base: BaseModel, tmp_path: Path) -> None:
    asked = ask(QUESTIONS, 1, 3, 1, seed=0)
    paths = make(base, tmp_path, asked)
    before = contents(paths)
    paths[4].write_bytes(before[str(paths[4])][:200])
    paths[6].unlink()
    assert contents(make(base, tmp_path, asked)) == before


def test_a_picture_does_not_depend_on_its_batch(base: BaseModel, tmp_path: Path) -> None:
    asked = ask(QUESTIONS, 1, 3, 1, seed=0)
    drawn = [
        make(base, tmp_path / str(batch), asked, settings={"batch": batch}) for batch in (2, 7)
    ]
    for one, other in zip(*drawn, strict=True):
        difference = np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "another"},
        {"settings": {"steps": 3}},
        {"precision": "bf16-mixed"},
        {"seed": 1},
    ],
)
def test_pictures_of_anything_else_give_way(
    base: BaseModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    seed = changes.get("seed", 0)
    first = make(base, tmp_path, ask(QUESTIONS, 2, 2, 1, seed=0))
    before = contents(first)
    (tmp_path / "notes.txt").write_text("mine")
    asked = ask(QUESTIONS, 1, 2, 1, seed=seed)
    second = make(base, tmp_path, asked, **{k: v for k, v in changes.items() if k != "seed"})
    assert sorted(tmp_path.rglob("*.png")) == sorted(second), "none of the others is left"
    assert not set(contents(second).values()) & set(before.values())
    assert (tmp_path / "notes.txt").exists()


def test_library_versions_decide(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask(QUESTIONS, 1, 1, 1, seed=0)
    paths = make(base, tmp_path, asked)
    times = [path.stat().st_mtime_ns for path in paths]
    monkeypatch.setattr(pictures, "versions", lambda: {"torch": "another"})
    make(base, tmp_path, asked)
    assert all(path.stat().st_mtime_ns != time for path, time in zip(paths, times, strict=True))


def test_settings_that_cannot_work_remove_nothing(base: BaseModel, tmp_path: Path) -> None:
    paths = make(base, tmp_path, ask(QUESTIONS, 1, 1, 1, seed=0))
    with pytest.raises(UserError, match="sampler"):
        make(base, tmp_path, [], settings={"sampler": "nonsense"})
    assert all(path.exists() for path in paths)


def test_a_disk_that_cannot_be_written(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        make(base, tmp_path / "file", ask(QUESTIONS, 1, 1, 1, seed=0))


def test_half_precision_draws_nearly_the_same(base: BaseModel, tmp_path: Path) -> None:
    asked = ask(QUESTIONS, 1, 1, 1, seed=0)
    used: list[torch.dtype] = []
    handle = base.unet.conv_in.register_forward_hook(lambda _, __, out: used.append(out.dtype))
    vae = base.vae.decoder.conv_in.register_forward_hook(lambda _, __, out: used.append(out.dtype))
    exact = make(base, tmp_path / "fp32", asked)
    assert {*used} == {torch.float32}
    used.clear()
    half = make(base, tmp_path / "bf16", asked, precision="bf16-mixed")
    handle.remove()
    vae.remove()
    assert {*used} == {torch.bfloat16, torch.float32} and used[-1] == torch.float32, "VAE as it is"
    for one, other in zip(exact, half, strict=True):
        difference = np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)
        assert 0 < np.abs(difference).mean() < 5


@pytest.mark.parametrize("text", [None, "{", "[]", '{"asked": [{"about": "class"}]}'])
def test_a_folder_that_does_not_say_what_was_asked(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(UserError, match=r"pictures\.json is missing or damaged"):
        read_asked(tmp_path)
