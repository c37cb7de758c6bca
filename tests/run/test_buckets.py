"""Pictures of any form, from the command line: planned, trained, told in the log."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import main
from ldm.training import DreamBoothModule
from tests.workspace import Workspace

# What the pictures, 40 pixels high and 48, 56 and 64 wide, become at 32 pixels in steps of 8.
BUCKETS = {"0.png": (32, 32), "1.png": (32, 24), "2.png": (40, 24)}
SETTINGS: dict[str, object] = {
    "data__aspect": "buckets",
    "data__crop": "random",
    "data__crops": 2,
    "data__mirror": "true",
    "objective__mask_outside": 0.1,
    "training__batch": 3,
    "prior__images": "subject",
    "prior__target": "base",
}


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("buckets"), tiny_base_folder("sdxl"))
    made.draw_masks()
    (made.pictures / "1.txt").write_text("[V] on the beach")
    return made


def test_what_a_run_is_trained_on(
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pictures are their class too, as the frozen base predicts them."""
    seen: set[tuple[Any, ...]] = set()
    step = DreamBoothModule.training_step

    def spy(module: DreamBoothModule, batches: list[dict[str, Any]], batch_idx: int) -> Any:
        for batch in batches:
            rows = zip(batch["names"], batch["prompts"], batch["sizes"].tolist(), strict=True)
            grid = tuple(4 * side for side in batch["latents"].shape[-2:])
            seen.update((name, prompt, *sizes[-2:], *grid) for name, prompt, sizes in rows)
        return step(module, batches, batch_idx)

    monkeypatch.setattr(DreamBoothModule, "training_step", spy)
    with caplog.at_level(logging.INFO, "ldm"):
        place.train("straight", training__steps=4, **SETTINGS)
    line = "trained in buckets: 0.png 48 x 40 -> 32 x 32 (17 % cut off), 1.png 56 x 40 -> 32 x 24"
    assert line in caplog.text
    prompts = {f"{n}.png": "a drawing of sks robot" for n in range(3)} | {
        "1.png": "sks on the beach"
    }
    wanted = {*prompts.items(), *((name, "a drawing of a robot") for name in BUCKETS)}
    assert seen == {
        (name, prompt, height, width, height, width)
        for name, prompt in wanted
        for width, height in [BUCKETS[name]]
    }


def test_resume_refuses_another_form(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.train("formed", training__steps=1, prior="null", data__aspect="buckets")
    for word in ("data.aspect=square", "data.enlarge=true"):
        assert main.main(["--resume", str(run), "training.steps=2", word]) == 2
        assert word.partition("=")[0] in capsys.readouterr().err


def test_the_plan_names_every_size(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, object] = {"data__aspect": "buckets", "data__resolution": 64}
    assert place.main("--dry-run", **options, data__enlarge="true") == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("pictures "))
    assert "0.png 48 x 40 -> 72 x 56 (7 % cut off)," in line and "3 of 'sks' in" in line


def test_enlarging_is_of_buckets(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.main("--dry-run", data__enlarge="true") == 2
    assert "data.enlarge=true: is about data.aspect=buckets" in capsys.readouterr().err


def test_one_very_long_picture_and_square_class_images(
    tmp_path: Path, tiny_base_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    Image.new("RGB", (900, 30), "red").save(place.pictures / "3.png")
    with caplog.at_level(logging.INFO, "ldm"):
        place.train("long", data__aspect="buckets", training__batch=4)
    assert "3.png 900 x 30 -> 64 x 16 (87 % cut off)" in caplog.text
    assert "enlarged" not in caplog.text
