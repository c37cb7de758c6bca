"""Bad input: each is one message with status 2, before anything is made."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import edit_json
from tests.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run; expect status 2 and one message, which is returned."""

    def run(place: Workspace, *more: str, **settings: object) -> str:
        capsys.readouterr()
        assert place.main(*more, **settings) == 2
        message = capsys.readouterr().err
        assert message.count("error: ") == 1 and "Traceback" not in message
        assert not list(place.logs.glob("*")), "nothing is left behind"
        return message

    return run


def test_picture_folders(place: Workspace, refused: Callable[..., str]) -> None:
    missing = place.folder / "missing"
    assert str(missing) in refused(place, subject__pictures=missing)
    missing.mkdir()
    assert str(missing) in refused(place, subject__pictures=missing)
    (missing / "notes.md").write_text("no picture", encoding="utf-8")
    assert "notes.md" in refused(place, subject__pictures=missing)
    assert "notes.md" in refused(place, prior__folder=missing)


def test_unreadable_pictures(place: Workspace, refused: Callable[..., str]) -> None:
    from PIL import Image

    Image.effect_noise((200, 200), 60).convert("RGB").save(place.pictures / "cut.jpg")
    whole = (place.pictures / "cut.jpg").read_bytes()
    (place.pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (place.pictures / "text.jpg").write_text("no picture at all", encoding="utf-8")
    message = refused(place)
    assert "cut.jpg" in message and "text.jpg" in message, "all of them at once"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"training__stepz": 1}, "did you mean training.steps?"),
        ({"training__batch": "two"}, "training.batch=two: must be a whole number"),
        ({"training__steps": 0}, "training.steps=0"),
        ({"prior__prompt": "a drawing of a dog"}, "class noun"),
        ({"data__resolution": 33}, "data.resolution: 33 is not a multiple of 8"),
        ({"model__base": "nowhere/at/all"}, "nowhere/at/all"),
        ({"trainer__accelerator": "abacus"}, "abacus"),
        ({"trainer__strategy": "magic"}, "magic"),
        ({"training__batch": 4, "training__accumulate": 4}, "prior.batch"),
        ({"evaluation": "{oracle: 'nowhere.to:Be'}"}, "evaluation.oracle=nowhere.to:Be"),
        ({"evaluation": "{margins: {luck: 1}}"}, "evaluation.margins: there is no luck"),
        ({"evaluation": "{steps: 2000}"}, "evaluation.steps: 2000 is not within"),
        ({"trainer__devices": "-1"}, "trainer={'accelerator': 'cpu', 'devices': '-1'"),
        ({"trainer__devices": 2, "training__batch": 3}, "training.batch=3 cannot be dealt out"),
        ({"trainer__devices": 2, "prior__batch": 3}, "prior.batch=3 cannot be dealt out"),
        ({"sampling__steps": 1001}, "sampling.steps: 1001 is not within 1 to 1000"),
        ({"prior__steps": 1001}, "prior.steps: 1001 is not within 1 to 1000"),
    ],
)
def test_wrong_settings(
    place: Workspace, refused: Callable[..., str], settings: dict[str, object], said: str
) -> None:
    assert said in refused(place, **settings)
    assert not (place.folder / "prior").exists(), "before class images are made"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_hardware_that_is_not_there(place: Workspace, refused: Callable[..., str]) -> None:
    message = refused(place, trainer__accelerator="cuda")
    assert "trainer={'accelerator': 'cuda'" in message and "auto" in message


@pytest.mark.parametrize("key", ["sampling.sampler", "prior.sampler"])
def test_sampler_that_the_base_cannot_use(
    place: Workspace, refused: Callable[..., str], key: str
) -> None:
    base = place.folder / "base"
    shutil.copytree(place.base, base)
    edit_json(base / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    settings: dict[str, object] = {"sampling__sampler": "ddim", "prior__sampler": "ddim"}
    settings[key.replace(".", "__")] = "plms"
    assert f"{key}: plms cannot start" in refused(place, model__base=base, **settings)


def test_held_out_pictures_are_looked_at_first(
    place: Workspace, refused: Callable[..., str]
) -> None:
    heldout = place.pictures / "heldout"
    heldout.mkdir()
    del place.settings["evaluation"]
    oracle = "tests.evaluation.fake:BrightnessOracle"
    assert f"no picture in {heldout}" in refused(place, evaluation__oracle=oracle)
    (heldout / "text.png").write_text("no picture at all", encoding="utf-8")
    assert "text.png" in refused(place, evaluation__oracle=oracle)
    message = refused(place, evaluation__oracle="tests.evaluation.fake:Nothing")
    assert "evaluation.oracle=tests.evaluation.fake:Nothing" in message


def test_missing_config_file(place: Workspace, refused: Callable[..., str]) -> None:
    assert "absent.yaml: no such" in refused(place, "absent.yaml")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_base_without_a_part(place: Workspace, refused: Callable[..., str], part: str) -> None:
    base = place.folder / "base"
    shutil.copytree(place.base, base)
    shutil.rmtree(base / part)
    message = refused(place, model__base=base)
    assert part in message and str(base) in message


@pytest.mark.parametrize("identifier", ["", "qqq"])
def test_poor_identifier_is_warned_of(
    place: Workspace, identifier: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ldm"):
        assert place.main("--dry-run", subject__identifier=identifier) == 0
    (warning,) = [r.getMessage() for r in caplog.records if "subject.identifier" in r.getMessage()]
    assert "q + q + q" in warning if identifier else "empty" in warning


def test_places_that_cannot_be_written(place: Workspace, refused: Callable[..., str]) -> None:
    file = place.folder / "file"
    file.write_text("in the way", encoding="utf-8")
    for key in ("logs", "prior__root", "data__cache"):
        message = refused(place, **{key: file / "below"})
        assert str(file) in message and key.replace("__", ".") in message
