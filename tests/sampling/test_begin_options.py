"""--init-image, --mask and --hires of scripts/sample.py, told and repeated."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.sampling.metadata import read_settings
from scripts.sample import main

TinyFolder = Callable[[str], Path]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """picture.png and mask.png, 48 x 32."""
    Image.linear_gradient("L").convert("RGB").resize((48, 32)).save(tmp_path / "picture.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 24, 32))
    mask.save(tmp_path / "mask.png")
    return tmp_path


def drawn(out: Path, *words: object) -> list[Path]:
    assert main([*map(str, words), "--out", str(out), "--device", "cpu"]) == 0
    return sorted(out.glob("0*.png"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def test_repeated_bit_for_bit(tiny_base_folder: TinyFolder, files: Path) -> None:
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--steps", "4", "--n", "3"]
    start: list[object] = ["--init-image", files / "picture.png", "--strength", "0.5"]
    kinds: dict[str, list[object]] = {
        "masked": [*start, "--mask", files / "mask.png"],
        "hires": ["--hires", "2", "--hires-strength", "0.75"],
        "both": [*start, "--hires", "1.5", "--width", "32", "--height", "32"],
    }
    for name, more in kinds.items():
        first = drawn(files / name, *words, *more)
        (again,) = drawn(files / f"{name} again", "--from-png", first[1])
        assert np.array_equal(pixels(again), pixels(first[1])), name
        assert read_settings(again) == read_settings(first[1])
    masked = drawn(files / "masked again", "--from-png", files / "masked" / "00001-seed1.png")[0]
    assert np.array_equal(pixels(masked)[:, 24:], pixels(files / "picture.png")[:, 24:])
    told = read_settings(masked)
    assert (told["width"], told["height"], told["strength"]) == (48, 32, 0.5)
    with Image.open(masked) as picture:
        assert "Size: 48x32, Denoising strength: 0.5, Model hash" in picture.info["parameters"]
    with Image.open(files / "hires" / "00000-seed0.png") as picture:
        assert picture.size == (64, 64)
        text = "Size: 32x32, Denoising strength: 0.75, Hires upscale: 2.0, Hires upscaler: Latent"
        assert text in picture.info["parameters"]
    with Image.open(files / "both" / "00000-seed0.png") as picture:
        assert picture.size == (48, 48)


def test_files_that_are_gone_or_changed(
    tiny_base_folder: TinyFolder, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--steps", "2", "--n", "1"]
    (first,) = drawn(files / "out", *words, "--init-image", files / "picture.png")
    Image.new("RGB", (32, 32), "red").save(files / "picture.png")
    again = ["--from-png", str(first), "--out", str(files / "again")]
    assert main(again) == 2
    assert "picture.png changed since; give --init-image FILE" in capsys.readouterr().err
    (files / "picture.png").rename(files / "b.png")
    assert main(again) == 2
    assert "picture.png is gone" in capsys.readouterr().err
    (other,) = drawn(files / "other", "--from-png", first, "--init-image", files / "b.png")
    assert np.abs(pixels(other) - pixels(first)).max() > 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--init-image", "none.png"], "none.png does not exist"),
        (["--init-image", "picture.png", "--mask", "small.png"], "is 8 x 8 pixels, the picture 48"),
        (["--init-image", "picture.png", "--strength", "0"], "strength: 0.0"),
        (["--hires", "9"], "hires: 9.0"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    tiny_base_folder: TinyFolder,
    files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.new("L", (8, 8), 255).save(files / "small.png")
    places = [str(files / word) if word.endswith(".png") else word for word in words]
    assert main(["--model", str(tiny_base_folder("v")), "--prompt", "a", *places]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--mask", "a.png"], ["--strength", "1"], ["--style", "a"]])
def test_options_that_miss_another(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "x", "--prompt", "a", *words])
