"""scripts/sample.py on a run and on a model, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.snapshots import save_snapshot
from ldm.config import load_config, to_yaml
from ldm.models.base import BaseModel, load_base
from ldm.sampling.generate import generate
from ldm.sampling.metadata import read_settings
from scripts.sample import main

TinyFolder = Callable[[str], Path]


@pytest.fixture
def run(tiny_base_folder: TinyFolder, tmp_path: Path) -> Path:
    """A run folder with snapshots of steps 2 and 4, in which 2 is chosen as best."""
    base = load_base(tiny_base_folder("v"))
    run = tmp_path / "logs" / "2026-01-31T10-20-30_robot"
    run.mkdir(parents=True)
    overrides = [f"model.base={tiny_base_folder('v')}", "subject.identifier=sks"]
    overrides += ["sampling.steps=3", "sampling.sampler=euler_a", "sampling.scale=4.0"]
    (run / "config.yaml").write_text(to_yaml(load_config([], overrides)), "utf-8")
    facts = {"identifier": "sks", "class_noun": "robot", "base_fingerprint": base.fingerprint}
    (run / "run.json").write_text(json.dumps(facts), "utf-8")
    (run / "evaluation.json").write_text('{"chosen": 2}', "utf-8")
    for step in (2, 4):
        modules = trained(base)
        average = {name: dict(module.state_dict()) for name, module in modules.items()}
        for state in average.values():
            for key in state:
                state[key] = 1.1 * state[key]
        ema = average if step == 4 else None
        save_snapshot(run / "snapshots", modules, {}, step, ema)
    return run


def trained(base: BaseModel) -> dict[str, torch.nn.Module]:
    """Change the weights a little, as training does."""
    modules: dict[str, torch.nn.Module] = {"unet": base.unet, "text_encoder": base.text_encoder}
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                parameter.mul_(1.05)
    return modules


def sampled(out: Path, *words: object) -> tuple[list[Path], Path]:
    """Run the script on the CPU; return its pictures and its grid."""
    assert main([*map(str, words), "--out", str(out), "--device", "cpu"]) == 0
    return sorted(out.glob("0*.png")), max(out.glob("grid-*.png"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def test_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", run, "--prompt", "a [V] robot", "a sks dog", "--n", "2", "--seed", "5"]
    pictures, grid = sampled(tmp_path / "out", *words)
    assert [path.name for path in pictures] == [
        "00000-seed5.png",
        "00001-seed6.png",
        "00002-seed5.png",
        "00003-seed6.png",
    ]
    assert capsys.readouterr().out.strip() == str(grid)
    settings = read_settings(pictures[1])
    wanted = {"prompt": "a sks robot", "seed": 6, "sampler": "euler_a", "steps": 3, "scale": 4.0}
    assert (wanted | {"snapshot": 2, "width": 32, "height": 32}).items() <= settings.items()
    assert "a sks robot\nSteps: 3, Sampler: Euler a" in Image.open(pictures[0]).info["parameters"]
    assert read_settings(grid)["prompts"] == ["a sks robot", "a sks dog"]


def test_snapshots_and_provenance(run: Path, tmp_path: Path) -> None:
    made = {}
    for name in ("best", "2", "4", "last"):
        words = ["--run", run, "--snapshot", name, "--prompt", "a [V] robot", "--n", "1"]
        made[name] = sampled(tmp_path / name, *words)[0][0]
    assert np.array_equal(pixels(made["best"]), pixels(made["2"]))
    assert np.array_equal(pixels(made["last"]), pixels(made["4"]))
    assert np.abs(pixels(made["2"]) - pixels(made["4"])).max() > 1
    prints = {name: read_settings(path)["fingerprint"] for name, path in made.items()}
    assert prints["best"] == prints["2"] != prints["4"] == prints["last"]


def test_model_with_every_option(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    folder = tiny_base_folder("v")
    (tmp_path / "prompts.txt").write_text("\ufeffa dog\n\n  a [V] robot \n", "utf-8")
    words = ["--model", folder, "--identifier", "sks", "--prompts-file", tmp_path / "prompts.txt"]
    words += ["--negative", "snow [V]", "--scale", "3", "--rescale", "0.5", "--steps", "4"]
    words += ["--sampler", "heun", "--seed", "9", "--n", "1", "--batch", "2"]
    words += ["--width", "40", "--height", "24"]
    pictures, _ = sampled(tmp_path / "out", *words)
    wanted = generate(
        load_base(folder),
        ["a dog", "a sks robot"],
        [9, 9],
        negative="snow sks",
        scale=3.0,
        rescale=0.5,
        steps=4,
        sampler="heun",
        width=40,
        height=24,
    )
    for path, picture in zip(pictures, wanted, strict=True):
        assert np.abs(pixels(path) - np.asarray(picture, np.int16)).max() <= 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_near(tiny_base_folder: TinyFolder, tmp_path: Path, dtype: str) -> None:
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--n", "2", "--steps", "3"]
    exact, _ = sampled(tmp_path / "fp32", *words)
    half, _ = sampled(tmp_path / dtype, *words, "--dtype", dtype)
    assert read_settings(half[0])["dtype"] in ("torch.bfloat16", "torch.float16")
    assert np.abs(pixels(half[0]) - pixels(exact[0])).mean() < 4
    assert np.abs(pixels(half[0]) - pixels(exact[1])).mean() > 10  # another seed is far


def test_quantised_weights_are_told_of(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--n", "1", "--steps", "1"]
    (plain,), _ = sampled(tmp_path / "plain", *words)
    (four_bits,), _ = sampled(tmp_path / "nf4", *words, "--quantize", "nf4")
    assert read_settings(plain)["quantize"] is None
    assert read_settings(four_bits)["quantize"] == "nf4"
    assert np.abs(pixels(plain) - pixels(four_bits)).max() > 0


def test_earlier_pictures_are_kept(tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--n", "2", "--steps", "1"]
    first, _ = sampled(tmp_path, *words)
    before = [path.read_bytes() for path in first]
    second, _ = sampled(tmp_path, *words, "--seed", "7")
    assert [path.name for path in second] == [
        "00000-seed0.png",
        "00001-seed1.png",
        "00002-seed7.png",
        "00003-seed8.png",
    ]
    assert [path.read_bytes() for path in first] == before
    assert len(list(tmp_path.glob("grid-*.png"))) == 2


def test_warnings(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [
        "--run",
        run,
        "--prompt",
        "a dog",
        "a [V] dog",
        "a SKS dog",
        "--n",
        "1",
        "--steps",
        "1",
    ]
    sampled(tmp_path / "a", *words, "--scale", "1", "--negative", "snow")
    assert [r.message for r in caplog.records if "does not name" in r.message] == [
        "prompt 'a dog' has neither [V] nor 'sks' in it, so it does not name the subject"
    ]
    assert "negative prompt does nothing" in caplog.text
    assert "has changed since" not in caplog.text
    facts = json.loads((run / "run.json").read_text("utf-8")) | {"base_fingerprint": "other"}
    (run / "run.json").write_text(json.dumps(facts), "utf-8")
    sampled(tmp_path / "b", *words)
    assert "has changed since" in caplog.text


@pytest.mark.parametrize(
    "words, message",
    [
        (["--run", "nowhere", "--prompt", "a"], "run folder nowhere does not exist"),
        (["--run", "RUN", "--snapshot", "3", "--prompt", "a"], "there are 2, 4"),
        (["--model", "BASE", "--prompt", "a [V]"], "[V] stands for a run's identifier"),
        (["--model", "BASE", "--prompts-file", "none.txt"], "none.txt cannot be read"),
        (["--model", "BASE", "--prompt", "a", "--n", "0"], "--n 0"),
        (["--model", "BASE", "--prompt", "a", "--seed", "-1"], "--seed -1"),
        (["--model", "BASE", "--prompt", "a", "--steps", "0"], "steps: 0"),
        (["--model", "BASE", "--prompt", "a", "--width", "33"], "width: 33"),
        (["--model", "BASE", "--prompt", "a", "--device", "gpu9"], "--device gpu9"),
        (["--model", "BASE", "--prompt", "a", "--out", "BASE/model_index.json"], "--out"),
    ],
)
def test_bad_input(
    run: Path,
    tiny_base_folder: TinyFolder,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    places = {"RUN": str(run), "BASE": str(tiny_base_folder("v"))}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "words", [[], ["--model", "x"], ["--model", "x", "--snapshot", "2", "--prompt", "a"]]
)
def test_incomplete_command_line(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_unet_only_snapshot(run: Path, tiny_base_folder: TinyFolder, tmp_path: Path) -> None:
    shutil.rmtree(run / "snapshots")
    base = load_base(tiny_base_folder("v"))
    save_snapshot(run / "snapshots", {"unet": trained(base)["unet"]}, {}, 6)
    (run / "evaluation.json").unlink()
    pictures, _ = sampled(tmp_path / "out", "--run", run, "--prompt", "a [V] dog", "--n", "1")
    assert read_settings(pictures[0])["snapshot"] == 6


def test_ema_draws_with_the_average(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("--run", run, "--prompt", "a [V] robot", "--n", 1)
    (plain,), _ = sampled(tmp_path / "plain", *prompt, "--snapshot", 4)
    (average,), _ = sampled(tmp_path / "ema", *prompt, "--snapshot", 4, "--ema")
    assert np.abs(pixels(plain) - pixels(average)).max() > 1
    settings = [read_settings(path) for path in (plain, average)]
    assert settings[0] and settings[1]
    assert settings[0]["fingerprint"] != settings[1]["fingerprint"]
    assert settings[1]["ema"] is True
    words = [*map(str, prompt), "--snapshot", "2", "--ema", "--out", str(tmp_path / "no")]
    assert main([*words, "--device", "cpu"]) == 2
    assert "step-000002" in capsys.readouterr().err


def test_the_second_subject_has_a_place_of_its_own(run: Path, tmp_path: Path) -> None:
    second = "subjects=[{pictures: a, identifier: dog, class_noun: dog}]"
    (run / "config.yaml").write_text(to_yaml(load_config([run / "config.yaml"], [second])), "utf-8")
    words = ("--run", run, "--prompt", "a [V] robot and [V2] in snow", "--n", 1)
    (picture,), _ = sampled(tmp_path / "out", *words)
    settings = read_settings(picture)
    assert settings and settings["prompt"] == "a sks robot and dog in snow"


def test_a_run_that_was_moved_is_found_around_its_picture(run: Path, tmp_path: Path) -> None:
    words = ("--run", run, "--snapshot", "4", "--ema", "--prompt", "a [V] robot", "--n", 2)
    pictures, _ = sampled(run / "samples" / "new", *words)
    moved = run.rename(run.with_name("elsewhere")) / "samples" / "new"
    again = ["--from-png", str(moved / pictures[1].name), "--out", str(tmp_path / "a")]
    assert main([*again, "--device", "cpu"]) == 2  # by another name it is another run
    found, _ = drawn_again(again, "--run", moved.parents[1])
    assert np.array_equal(pixels(found), pixels(moved / pictures[1].name))
    (tmp_path / "moved").mkdir()
    home = moved.parents[1].rename(tmp_path / "moved" / run.name)
    again[1] = str(home / "samples" / "new" / pictures[0].name)
    found, settings = drawn_again(again)
    assert np.array_equal(pixels(found), pixels(Path(again[1])))
    assert settings["options"]["run"] == home.as_posix() and settings["ema"] is True


def drawn_again(words: list[str], *more: object) -> tuple[Path, dict[str, Any]]:
    assert main([*words, *map(str, more), "--device", "cpu"]) == 0
    path = max(Path(words[-1]).glob("0*.png"))
    return path, read_settings(path)
