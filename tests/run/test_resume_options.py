"""Whatever is set, a run that goes on ends bit for bit where it would have ended."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from ldm.checkpoint import find_resume
from ldm.checkpoint.resume import NEWEST
from tests.torture import unequal
from tests.training.test_resume_exactly import rows_of
from tests.workspace import Workspace

STEPS, SAVED = 4, 2

COMMON: dict[str, object] = {
    "training__steps": STEPS,
    "training__save_every": SAVED,
    "training__batch": 2,
    "samples__every": 1,
    "samples__prompts": "['[V] on the beach']",
    "samples__count": 1,
}
# `second` stands for a second subject, `base` for the kind of base: "eps" where nothing is said.
CASES: dict[str, dict[str, object]] = {
    "saved in the middle of pivotal": {
        "training__pivotal": 0.75,
        "training__schedule": "cosine",
        "training__warmup": 1,
    },
    "saved at the end of pivotal, 8 bit": {
        "training__pivotal": 0.5,
        "training__optimizer": "adamw_8bit",
        "training__optimizer_arguments": "{min_8bit_size: 16}",
    },
    "saved at the end of pivotal, schedule-free, averaged": {
        "training__pivotal": 0.5,
        "training__optimizer": "schedule_free_adamw",
        "ema__schedule": "constant",
        "ema__decay": 0.5,
    },
    "saved at the end of pivotal, prodigy": {
        "training__pivotal": 0.5,
        "training__optimizer": "prodigy",
        "training__learning_rate": 1.0,
        "training__optimizer_arguments": "{d0: 1.0e-3}",
    },
    "saved as the text encoder stops": {
        "training__text_encoder_stop": 0.5,
        "training__text_encoder_learning_rate": 1e-4,
        "training__precision": "bf16-mixed",
        "prior__target": "base",
        "objective__caption_dropout": 0.5,
    },
    "saved after the text encoder stopped": {
        "training__text_encoder_stop": 0.25,
        "training__precision": "bf16-mixed",
        "prior__target": "base",
        "objective__caption_dropout": 0.5,
        "ema__schedule": "power",
    },
    "live class images": {
        "prior__images": "live",
        "prior__uses": 1,
        "prior__weight_end": 0.1,
        "training__accumulate": 2,
    },
    "the subject as its class, masks": {
        "prior__images": "subject",
        "prior__target": "base",
        "objective__mask_outside": 0.2,
        "objective__weighting": "min_snr",
    },
    "two subjects, random crops, adafactor": {
        "second": True,
        "data__crop": "random",
        "data__mirror": "true",
        "training__optimizer": "adafactor",
        "training__gradient_clip": "null",
    },
    "lion, gradient checkpointing": {
        "training__optimizer": "lion",
        "training__learning_rate": 1e-4,
        "training__schedule": "cosine",
        "model__gradient_checkpointing": "true",
        "model__train_text_encoder": "false",
    },
    "an optimizer of one's own, every noise": {
        "training__optimizer": "torch.optim:SGD",
        "training__optimizer_arguments": "{momentum: 0.9}",
        "objective__noise_offset": 0.1,
        "objective__pyramid_noise": 0.3,
        "objective__input_perturbation": 0.1,
        "objective__timesteps": "logit_normal",
        "objective__loss": "huber",
    },
    "zero terminal SNR": {
        "base": "v",
        "objective__zero_terminal_snr": "true",
        "objective__timesteps": "cubic",
        "sampling__rescale": 0.7,
        "ema__schedule": "constant",
    },
}


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> dict[str, Workspace]:
    made = {}
    for kind in ("eps", "v"):
        made[kind] = Workspace(tmp_path_factory.mktemp(kind), tiny_base_folder(kind))
        made[kind].draw_masks()
    return made


def as_killed(whole: Path, killed: Path) -> None:
    """Copy a run's folder as if it had died before it saved its last resume state.

    What it wrote after the one before is there, with other content: it has to be written anew.
    """
    shutil.copytree(whole, killed)
    (killed / NEWEST).unlink()
    for step in range(SAVED + 1, STEPS + 1):
        snapshot = killed / f"snapshots/step-{step:06d}"
        shutil.rmtree(snapshot)
        shutil.copytree(killed / "snapshots/step-000001", snapshot)
        shutil.copyfile(killed / "samples/step-000000.png", killed / f"samples/step-{step:06d}.png")
    with (killed / "metrics.csv").open("r+b") as file:
        file.truncate((killed / "metrics.csv").stat().st_size - 20)  # a row cut short


def contents(run: Path) -> dict[str, bytes]:
    """Every file of the snapshots and grids."""
    paths = [path for part in ("snapshots", "samples") for path in (run / part).rglob("*.*")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("case", CASES)
def test_going_on_is_bit_equal(places: dict[str, Workspace], tmp_path: Path, case: str) -> None:
    settings = {**COMMON, **CASES[case]}
    place = places[str(settings.pop("base", "eps"))]
    if settings.pop("second", False):
        second = {"pictures": str(place.pictures), "identifier": "dog", "class_noun": "dog"}
        settings["subjects"] = json.dumps([second])
    whole = place.train(f"case{list(CASES).index(case)}", **settings)
    run = tmp_path / whole.name  # it is written into the grids
    as_killed(whole, run)
    assert contents(run) != contents(whole)
    point = find_resume(run)
    assert point is not None and point.step == SAVED

    assert main.main(["--resume", str(run)]) == 0
    expected, found = contents(whole), contents(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert rows_of(run) == rows_of(whole)
    assert [row["step"] for row in rows_of(run)] == list("1234")
    ends = [torch.load(folder / NEWEST, weights_only=True) for folder in (whole, run)]
    assert ends[0]["global_step"] == STEPS
    assert not list(unequal(ends[0], ends[1], "resume.ckpt"))
    averaged = {name.split("/")[-1] for name in found if ".ema." in name}
    assert bool(averaged) == ("ema__schedule" in settings)
