"""`scripts/preflight.py` as a user has it, and its short form in `main.py`."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter, ImageOps

from ldm.config import load_config
from ldm.data.images import find_pictures, load_picture
from ldm.data.latents import Transform
from ldm.models.base import load_base
from ldm.run.memory.prediction import memory_bytes
from ldm.run.preflight import recommend
from ldm.run.preflight.check import _noun_concerns
from ldm.run.preflight.pictures import Look, advice_on, look_at
from ldm.run.preflight.sheet import contact_sheet
from ldm.run.preflight.words import Drawings, rare_words, word_of
from ldm.run.prepare import Prepared, prepare
from scripts import preflight
from tests.data.test_quality import textured
from tests.workspace import MAIN_JOB, Workspace

ROOT = Path(__file__).parents[3]
FAST = ("evaluation.steps=2", "sampling.steps=2", "prior.count=2", "samples.every=0")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve troubles in one folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    textured(0).rotate(90, expand=True).save(folder / "a_sideways.jpg", exif=exif, quality=95)
    textured(1).save(folder / "b_fine.png")
    (folder / "b_fine.txt").write_text("a drawing of [V] dog on a rock")
    Image.new("L", (256, 256), 255).save(folder / "b_fine.mask.png")
    ImageOps.mirror(textured(1)).save(folder / "c_mirror.png")
    textured(2).filter(ImageFilter.GaussianBlur(4)).save(folder / "d_blurred.png")
    textured(3).crop((0, 70, 256, 170)).convert("CMYK").save(folder / "e_wide.jpg", quality=95)
    textured(4, side=40).save(folder / "f_small.bmp")
    clear = textured(5).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L"))
    clear.save(folder / "g_clear.png")
    (folder / "notes.pdf").write_bytes(b"no picture")
    return folder


def add_truncated(folder: Path) -> None:
    content = (folder / "b_fine.png").read_bytes()
    (folder / "h_cut.png").write_bytes(content[: len(content) // 2])


def run(photos: Path, base: Path, *more: str) -> int:
    words = ["--pictures", str(photos), "--class-noun", "dog", "--model", str(base)]
    return preflight.main([*words, "--out", str(photos.parent / "out"), *FAST, *more])


def test_each_trouble_is_found_and_nothing_else(photos: Path) -> None:
    add_truncated(photos)
    looks = look_at(find_pictures(photos), Transform(64))
    found = {look.path.name: set(look.concerns) for look in looks}
    assert found == {
        "a_sideways.jpg": set(),
        "b_fine.png": set(),
        "c_mirror.png": {"equal"},
        "d_blurred.png": {"blurred"},
        "e_wide.jpg": {"cut"},
        "f_small.bmp": {"small"},
        "g_clear.png": set(),
        "h_cut.png": {"unreadable"},
    }
    assert "the mirror image of b_fine.png" in looks[2].concerns["equal"], "its caption counts"
    assert [("buckets" in line) for line in advice_on(looks, True)] == [True]
    assert advice_on(looks, False) == []
    assert "usable" in advice_on(looks[:2], True)[0]


def test_sheet_shows_what_is_cut_off(photos: Path) -> None:
    (look,) = look_at([photos / "e_wide.jpg"], Transform(64))
    sheet = contact_sheet([look])
    row = np.asarray(sheet)[14 + 62, 14 : 14 + 320].astype(int)
    coloured = np.flatnonzero(row.max(1) - row.min(1) > 8)
    assert 95 <= coloured[0] <= 99 and 220 <= coloured[-1] <= 224, "the middle square, in colour"


def test_one_background_is_told(tmp_path: Path) -> None:
    place = textured(7, side=400)
    for number in range(4):
        shift = 12 * number * number
        part = place.crop((shift, shift // 2, 256 + shift, 256 + shift // 2))
        part.paste(textured(20 + number, side=120), (60, 70))
        part.save(tmp_path / f"{number}.png")
    looks = look_at(find_pictures(tmp_path), Transform(64))
    assert not any(look.concerns for look in looks)
    assert "same background" in advice_on(looks, True)[0]


def test_whole_command(
    photos: Path,
    tiny_base_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny_base_folder("eps")
    assert run(photos, base, "--identifier", "robot", "evaluation.class_images=4") == 0
    said, out = capsys.readouterr().out, photos.parent / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"pictures.png", "class_noun.png", "identifiers.png", "recommended.yaml"}
    assert "d_blurred.png" in said and "'robot': " in said and "s a step" in said
    path = out / "recommended.yaml"
    config = load_config([MAIN_JOB, path], [])
    assert config.model.base == str(base) and config.subject.class_noun == "dog"
    assert config.data.aspect == "buckets" and config.prior is not None
    assert config.subject.pictures == str(photos) and config.subject.identifier == "robot"
    numbers = [line for line in path.read_text().splitlines() if line.startswith("  ")]
    assert numbers and all("  # " in line for line in numbers), "each with its reason"


@pytest.mark.parametrize(("count", "steps"), [(2, 300), (4, 600), (12, 950), (30, 1200)])
def test_more_pictures_take_more_steps(
    count: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([MAIN_JOB], ["evaluation=null", "training.weight_decay=0.5"])
    looks = [Look(tmp_path / f"{number}.png") for number in range(count)]
    looks.append(Look(tmp_path / "x.png", concerns={"blurred": "is not used"}))
    monkeypatch.setattr(recommend, "device_bytes", lambda config: None)
    numbers, fits = recommend.recommended(config, cast(Prepared, None), looks, needed=1)
    told = recommend.write_recommended(tmp_path / "told.yaml", config, numbers, [])
    assert fits and told.training.steps == steps
    assert told.evaluation is None and told.training.weight_decay == 0.5
    assert told.prior is not None and told.prior.count == round(64 * steps / 600)


def test_what_does_not_fit_gets_options(
    photos: Path,
    tiny_base_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a MiB less than is predicted: the least harmful option that helps is taken."""
    config = load_config([MAIN_JOB], [f"model.base={tiny_base_folder('eps')}", "evaluation=null"])
    ready = prepare(config)
    needed = memory_bytes(config, ready)
    monkeypatch.setattr(recommend, "ROOM", 1.0)
    monkeypatch.setattr(recommend, "device_bytes", lambda config: needed - 2**19)
    numbers, fits = recommend.recommended(config, ready, [], needed)
    assert fits and numbers["training.accumulate"][0] == 4
    assert "predicted without" in numbers["training.accumulate"][1]
    monkeypatch.setattr(recommend, "options_to_fit", lambda *_: None)
    assert not recommend.recommended(config, ready, [], needed)[1]


def test_clean_folder(
    photos: Path,
    tmp_path: Path,
    tiny_base_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_truncated(photos)
    (photos / "heldout").mkdir()
    textured(9).save(photos / "heldout/x.png")
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    base, clean = tiny_base_folder("eps"), tmp_path / "clean"
    assert run(photos, base, "--no-draw") == 2, "a damaged picture: training could not start"
    assert "h_cut.png" in capsys.readouterr().err
    assert run(photos, base, "--no-draw", "evaluation=null", "--write", str(clean)) == 0
    assert {path.name for path in clean.iterdir()} == {
        "a_sideways.jpg",
        "b_fine.png",
        "b_fine.txt",
        "b_fine.mask.png",
        "e_wide.jpg",
        "f_small.png",
        "g_clear.png",
        "g_clear.mask.png",
        "heldout",
    }
    said = capsys.readouterr().out
    assert all(f"left out: {name}" in said for name in ("c_mirror", "d_blurred", "h_cut"))
    with Image.open(clean / "a_sideways.jpg") as upright:
        assert upright.mode == "RGB" and not upright.getexif().get(0x0112)
    for look in look_at(find_pictures(clean), Transform(64)):
        assert not look.is_dropped
    first, again = load_picture(photos / "a_sideways.jpg"), load_picture(clean / "a_sideways.jpg")
    assert np.abs(np.asarray(first, int) - np.asarray(again, int)).mean() < 3, "the right way up"
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    told = yaml.safe_load((tmp_path / "out/recommended.yaml").read_text())
    assert told["subject"]["pictures"] == str(clean)
    assert run(photos, base, "--write", str(clean)) == 2, "it holds something"
    assert "it holds something" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--pictures": "nowhere"}, "does not exist"),
        ({"--model": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_what_stops_training_is_status_2(
    photos: Path, change: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--pictures": str(photos), "--out": str(photos.parent / "out")} | change
    assert preflight.main([word for pair in words.items() for word in pair]) == 2
    assert said in capsys.readouterr().err


# --- words ----------------------------------------------------------------------------------------


def test_rank_is_that_of_the_merges() -> None:
    tokenizer = load_base(ROOT / "data/storybook-sd").tokenizer
    merges = json.loads((ROOT / "data/storybook-sd/tokenizer/tokenizer.json").read_text())
    pairs = ["".join(pair) for pair in merges["model"]["merges"]]
    dog, happy = word_of(tokenizer, "dog"), word_of(tokenizer, "happy")
    assert (dog.rank, dog.merges) == (pairs.index("dog</w>"), len(pairs))
    assert "common word" in dog.concerns[0]
    assert happy.rank is None and "5 tokens" in happy.concerns[0]
    words = rare_words(tokenizer)
    assert {"sks", "qlk", "zwx"} <= {word.word for word in words}
    assert not any(word.concerns for word in words)


def test_base_tells_words_that_mean_something() -> None:
    """On the embedded base, by the oracle's embedding and by pixels alike."""
    pictures = f"subject.pictures={ROOT / 'data/subjects/dog_pepper'}"
    given = [pictures, "subject.class_noun=dog", "evaluation.steps=6"]
    config = load_config([MAIN_JOB], given)
    ready = prepare(config, to_train=False)
    drawings = Drawings(config, ready)
    red, sks = (word_of(ready.base.tokenizer, word) for word in ("red", "sks"))
    for oracle in (drawings.oracle, None):
        drawings.oracle = oracle
        for word in (red, sks):
            drawings.measure(word)
        assert any("already means something" in concern for concern in red.concerns)
        assert sks.concerns == [] and (sks.moved or 0) < (red.moved or 0) / 3
        assert sks.varied == pytest.approx(1, abs=0.05)
        assert drawings.drawn_share() == (None if oracle is None else 1.0)
    assert len(drawings.made) == 3 and drawings.seconds_per_step() > 0


def test_noun_that_the_oracle_does_not_know(tmp_path: Path) -> None:
    pictures = f"subject.pictures={ROOT / 'data/subjects/dog_pepper'}"
    config = load_config([MAIN_JOB], [pictures, "subject.class_noun=wardrobe"])
    drawings = Drawings(config, prepare(config, to_train=False))
    assert drawings.drawn_share() is None and drawings.made == {}, "nothing is drawn for it"
    assert "knows no 'wardrobe'" in _noun_concerns(drawings, "wardrobe")[0]


# --- the short form in main.py --------------------------------------------------------------------


def test_run_and_plan_warn_of_pictures(
    tmp_path: Path,
    tiny_base_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    shutil.copy(place.pictures / "0.png", place.pictures / "copy.png")
    assert place.main("--dry-run") == 0
    assert "warning       copy.png: nearly 0.png" in capsys.readouterr().out
    with caplog.at_level(logging.WARNING):
        place.train("warned")
    assert "copy.png: nearly 0.png" in caplog.text
