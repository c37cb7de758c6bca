"""google/dreambooth's own list of subjects and prompts, and what becomes of it."""

from pathlib import Path

import pytest
import yaml

from ldm.config import load_config
from ldm.errors import UserError
from ldm.study.subjects import dreambench, read_list, write_overlay

MAIN_JOB = Path(__file__).parents[2] / "configs" / "dreambooth.yaml"
PHOTOS = Path(__file__).parents[3] / "shared" / "photos"
LIST = """\ufeffClasses

subject_name,class
clock, clock
plush_bear,stuffed animal
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
"a {0} {1} on a king's bed".format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
  'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "prompts_and_classes.txt").write_text(LIST.replace("\n", "\r\n"), encoding="utf-8")
    for name in ("clock", "plush_bear", "cat2"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_list_is_read(data: Path) -> None:
    classes, prompts = read_list(data / "prompts_and_classes.txt")
    assert classes == {"clock": "clock", "plush_bear": "stuffed animal", "cat2": "cat"}
    assert prompts["object"] == ["a {0} {1} in the jungle", "a {0} {1} on a king's bed"]
    assert prompts["live"] == ["a {0} {1} wearing a red hat"]


def test_subjects_get_the_prompts_of_their_kind(data: Path) -> None:
    (clock, bear, cat), missing = dreambench(data)
    assert not missing
    assert bear.settings["evaluation.prompts"][0] == "a [V] stuffed animal in the jungle"
    assert cat.settings["evaluation.prompts"] == ["a [V] cat wearing a red hat"]
    assert clock.pictures == data / "clock"


def test_the_repository_itself_may_be_given(data: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in list(data.iterdir()):
        if path != whole:
            (whole / "dataset").mkdir(exist_ok=True)
            path.rename(whole / "dataset" / path.name)
    subjects, _ = dreambench(whole, ["cat2"])
    assert [one.name for one in subjects] == ["cat2"]


def test_what_is_not_there_is_named(data: Path) -> None:
    (data / "clock").rmdir()
    subjects, missing = dreambench(data)
    assert [one.name for one in subjects] == ["plush_bear", "cat2"] and missing == ["clock"]
    for wrong in ("clock", "nothing"):
        with pytest.raises(UserError, match=f"no subject {wrong}.*there are plush_bear, cat2"):
            dreambench(data, [wrong])


def test_a_wrong_folder_or_list_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts_and_classes.txt there"):
        dreambench(tmp_path / "nowhere")
    file = data / "prompts_and_classes.txt"
    file.write_text("Classes\nclock,clock\n")
    with pytest.raises(UserError, match=r"1 lines .* 0 prompts"):
        dreambench(data)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        dreambench(data)
    file.write_text(LIST.replace("Live Subject Prompts", "Others"))
    _, prompts = read_list(file)
    assert len(prompts["object"]) == 3
    with pytest.raises(UserError, match="no live prompts, which cat2"):
        dreambench(data)


def test_an_overlay_is_a_configuration(data: Path, tmp_path: Path) -> None:
    subject = dreambench(data, ["plush_bear"])[0][0]
    file = write_overlay(subject, tmp_path / "overlays" / "bear.yaml")
    config = load_config([MAIN_JOB, file], [])
    assert config.subject.class_noun == "stuffed animal"
    assert config.subject.pictures == str(data / "plush_bear")
    assert config.evaluation is not None
    assert config.evaluation.prompts[1] == "a [V] stuffed animal on a king's bed"
    assert yaml.safe_load(file.read_text())["subject"]["class_noun"] == "stuffed animal"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs beside the checkout")
def test_the_real_list() -> None:
    classes, prompts = read_list(PHOTOS / "prompts_and_classes.txt")
    assert len(classes) == 30 and classes["grey_sloth_plushie"] == "stuffed animal"
    assert [len(texts) for texts in prompts.values()] == [25, 25]
    assert sum(noun in ("cat", "dog") for noun in classes.values()) == 9, "the live subjects"
    subjects, missing = dreambench(PHOTOS)
    assert len(subjects) == 5 and len(missing) == 25
    dog = next(one for one in subjects if one.name == "dog3")
    assert "a [V] dog wearing a santa hat" in dog.settings["evaluation.prompts"]
