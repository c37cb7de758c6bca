"""A subject written as a folder of pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scripts.draw_storybook
from ldm.errors import UserError
from ldm.storybook import SUBJECTS, heldout_scenes, render, training_scenes
from ldm.storybook.folder import find_subject, write_subject


def test_the_folder_holds_the_subjects_pictures_and_captions(tmp_path: Path) -> None:
    subject = find_subject("random:7:cat")
    folder = write_subject(subject, tmp_path, captions=True)
    assert folder == tmp_path / subject.name
    for place, scenes in (
        (folder, training_scenes(subject)),
        (folder / "heldout", heldout_scenes(subject)),
    ):
        assert len(list(place.glob("*.png"))) == len(list(place.glob("*.txt"))) == len(scenes)
        for i, (scene, text) in enumerate(scenes):
            with Image.open(place / f"{i:02d}.png") as picture:
                assert (np.asarray(picture) == np.asarray(render(scene))).all()
            assert (place / f"{i:02d}.txt").read_text() == f"{text}\n"
            assert "[V] cat" in text


def test_writing_again_repairs_and_leaves_the_rest(tmp_path: Path) -> None:
    folder = write_subject(SUBJECTS["cup_breakfast"], tmp_path)
    assert not list(folder.rglob("*.txt"))
    whole, (kept, cut) = (folder / "01.png").read_bytes(), (folder / "00.png", folder / "01.png")
    cut.write_bytes(whole[:100])
    before = kept.stat().st_mtime_ns
    write_subject(SUBJECTS["cup_breakfast"], tmp_path)
    assert cut.read_bytes() == whole
    assert kept.stat().st_mtime_ns == before
    assert len(list(folder.rglob("*"))) == 26  # nothing left over


def test_the_shipped_folders_are_what_is_written(tmp_path: Path) -> None:
    for name in scripts.draw_storybook.SHIPPED:
        folder = write_subject(SUBJECTS[name], tmp_path)
        for path in folder.rglob("*.png"):
            shipped = Path("data/subjects") / path.relative_to(tmp_path)
            with Image.open(path) as a, Image.open(shipped) as b:
                assert (np.asarray(a) == np.asarray(b)).all(), shipped


def test_subjects_by_name() -> None:
    assert find_subject("dog_cocoa") is SUBJECTS["dog_cocoa"]
    assert find_subject("random:12") == find_subject("random:12") != find_subject("random:13")
    assert find_subject("random:12:fish").noun == "fish"


@pytest.mark.parametrize("name", ["robot", "random", "random:", "random:-1", "random:x", "other:1"])
def test_a_wrong_name_is_explained(name: str) -> None:
    with pytest.raises(UserError, match=r"random:SEED.*robot_volt"):
        find_subject(name)


@pytest.mark.parametrize("noun", ["", "elephant"])
def test_a_wrong_class_is_explained(noun: str) -> None:
    with pytest.raises(UserError, match=r"classes are dog"):
        find_subject(f"random:1:{noun}")


def test_the_command_draws_any_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = scripts.draw_storybook.main
    assert main(["--subject", "car_comet", "random:3:tree", "--out", str(tmp_path)]) == 0
    tree = find_subject("random:3:tree").name
    assert {p.name for p in tmp_path.iterdir()} == {
        "car_comet",
        "car_comet.png",
        tree,
        f"{tree}.png",
    }
    assert main(["--subject", "unicorn", "--out", str(tmp_path)]) == 2
    assert "unicorn" in capsys.readouterr().err
