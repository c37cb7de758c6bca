"""A picture from its own metadata, and seeds as ranges."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.run.drawing.jobs import seeds_of
from ldm.sampling.metadata import png_info, read_settings
from scripts.sample import main

TinyFolder = Callable[[str], Path]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def drawn(out: Path, *words: object) -> list[Path]:
    assert main([*map(str, words), "--out", str(out), "--device", "cpu"]) == 0
    return sorted(out.glob("0*.png"))


@pytest.fixture
def model(tiny_base_folder: TinyFolder, tmp_path: Path) -> Path:
    """Of its own: it may be changed."""
    return Path(shutil.copytree(tiny_base_folder("v"), tmp_path / "model"))


def test_bit_for_bit_with_every_option(model: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--identifier", "sks", "--prompt", "a [V] dog", "snow", "sks"]
    words += ["--seed", "3-4,9", "--negative", "robot", "--scale", "3", "--rescale", "0.5"]
    words += ["--steps", "3", "--sampler", "euler_a", "--batch", "4", "--width", "40"]
    words += ["--height", "24", "--dtype", "bf16", "--memory", "small", "--clip-skip", "1"]
    words += ["--prompt-chunks", "2", "--prediction-type", "epsilon", "--quantize", "int8"]
    first = drawn(tmp_path / "first", *words)
    assert [path.name[5:] for path in first[:3]] == ["-seed3.png", "-seed4.png", "-seed9.png"]
    for place in (2, 5, 8):  # of batches of 4, 4 and 1
        (again,) = drawn(tmp_path / f"again{place}", "--from-png", first[place])
        assert np.array_equal(pixels(again), pixels(first[place]))
        assert read_settings(again) == read_settings(first[place])
        with Image.open(again) as one, Image.open(first[place]) as other:
            assert one.info == other.info
            assert "Clip skip: 2" in one.info["parameters"]
    assert "together" not in read_settings(first[8])


def test_what_is_given_beside_it_overrides(model: Path, tmp_path: Path) -> None:
    words = ["--model", model, "--prompt", "a dog", "snow", "--steps", "3", "--n", "2"]
    picture = drawn(tmp_path / "first", *words, "--seed", "6")[1]
    (other,) = drawn(tmp_path / "steps", "--from-png", picture, "--steps", "4")
    changed = {"prompt": "a dog", "seed": 7, "steps": 4}
    assert changed.items() <= read_settings(other).items()
    assert np.abs(pixels(other) - pixels(picture)).max() > 1
    more = drawn(tmp_path / "more", "--from-png", picture, "--seed", "6-7", "--prompt", "snow")
    assert [read_settings(path)["seed"] for path in more] == [6, 7]
    assert np.abs(pixels(more[0]) - pixels(tmp_path / "first" / "00002-seed6.png")).max() <= 1
    (alone,) = drawn(tmp_path / "alone", "--from-png", picture, "--batch", "1")
    assert np.abs(pixels(alone) - pixels(picture)).max() <= 1


def test_a_model_that_is_gone_or_changed(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["--model", model, "--prompt", "a dog", "--steps", "1", "--n", "1"]
    (picture,) = drawn(tmp_path / "first", *words)
    again = ["--from-png", str(picture), "--device", "cpu", "--out", str(tmp_path / "again")]
    moved = model.rename(tmp_path / "moved")
    assert main(again) == 2
    assert str(model) in capsys.readouterr().err
    assert main([*again, "--model", str(moved)]) == 0
    assert np.array_equal(pixels(tmp_path / "again" / "00000-seed0.png"), pixels(picture))
    config = moved / "scheduler" / "scheduler_config.json"
    changed = json.loads(config.read_text("utf-8")) | {"beta_end": 0.02}
    config.write_text(json.dumps(changed), "utf-8")
    assert main([*again, "--model", str(moved)]) == 0
    assert "the picture will be another one" in caplog.text
    moved.rename(model)
    assert main(again) == 2
    assert "it changed since; give --run or --model" in capsys.readouterr().err


def test_other_circumstances_are_told_of(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--model", model, "--prompt", "a dog", "--steps", "1", "--n", "1"]
    (picture,) = drawn(tmp_path / "first", *words)
    drawn(tmp_path / "same", "--from-png", picture)
    assert "may differ" not in caplog.text
    settings = read_settings(picture)
    settings["threads"] = torch.get_num_threads() + 1
    settings["options"]["device"] = "cuda:7"
    with Image.open(picture) as opened:
        opened.save(tmp_path / "b.png", pnginfo=png_info(settings))
    assert main(["--from-png", str(tmp_path / "b.png"), "--out", str(tmp_path / "b")]) == 0
    assert f"threads {torch.get_num_threads() + 1}, now" in caplog.text


def test_weights_choices_and_styles_are_told_and_repeated(model: Path, tmp_path: Path) -> None:
    (tmp_path / "styles.yaml").write_text("wet: {prompt: '{prompt} in (snow:1.2)', negative: a}")
    (tmp_path / "place.txt").write_text("beach\nsnow\n")
    words = ["--model", model, "--identifier", "sks", "--prompt", "a {dog|robot} [V] on __place__"]
    words += ["--wildcards", tmp_path, "--styles", tmp_path / "styles.yaml", "--style", "wet"]
    words += ["--negative", "(the)", "--steps", "2", "--seed", "1-4"]
    first = drawn(tmp_path / "first", *words)
    texts = [read_settings(path)["prompt"] for path in first]
    assert len(set(texts)) > 1
    for text in texts:
        assert re.fullmatch(r"a (dog|robot) sks on (beach|snow) in \(snow:1.2\)", text)
    assert read_settings(first[0])["negative"] == "(the), a"
    with Image.open(first[0]) as opened:
        assert opened.info["parameters"].startswith(f"{texts[0]}\nNegative prompt: (the), a\nSteps")
    (again,) = drawn(tmp_path / "again", "--from-png", first[2])
    assert np.array_equal(pixels(again), pixels(first[2]))
    (plain,) = drawn(tmp_path / "plain", "--from-png", first[2], "--plain", "--batch", "1")
    assert np.abs(pixels(plain) - pixels(first[2])).max() > 1
    (still,) = drawn(tmp_path / "still", "--from-png", plain)
    assert np.array_equal(pixels(still), pixels(plain))


@pytest.mark.parametrize(
    "told, message",
    [
        (None, "holds no settings"),
        ({"prompt": "a"}, "a sheet of several pictures"),
        ({"prompt": "a", "seed": 1, "snapshot": 3, "model": "gone step-3"}, "gone, is gone; give"),
        ({"prompt": "a", "seed": 1, "options": {"run": "logs/gone"}}, "logs/gone, is gone; give"),
    ],
)
def test_pictures_that_cannot_be_repeated(
    told: dict[str, object] | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=png_info(told) if told else None)
    assert main(["--from-png", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_seeds() -> None:
    assert seeds_of("5", None) == [5, 6, 7, 8]
    assert seeds_of("5", 2) == [5, 6]
    assert seeds_of(None, None, usual=1, first=9) == [9]
    assert seeds_of("1-3, 20,2", None) == [1, 2, 3, 20]
    for text in ("-1", "a", "3-1", "1-", "1,,2", "1.5"):
        with pytest.raises(UserError, match=r"--seed"):
            seeds_of(text, None)
    with pytest.raises(UserError, match="--n 2 beside --seed 1-3"):
        seeds_of("1-3", 2)
