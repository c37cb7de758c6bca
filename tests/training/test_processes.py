"""One process, two, four, or one with accumulation: the same samples, the same result."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import main
from tests.forked import forked, ranks
from tests.training.job import build_module, run_jobs
from tests.workspace import Workspace, weights

BaseFolder = Callable[[str], Path]
STEPS, HALF = 20, 10

COMMON: dict[str, Any] = {
    "accumulate": 1,
    "batch": 4,
    "gradient_clip": 1.0,
    "ema": True,
    "objective": {"weighting": "min_snr", "noise_offset": 0.1},
    "optimizer": {"steps": STEPS},
    "save_every": HALF,
}


# The row alone, then everything, then the UNet alone.
PHASES: dict[str, Any] = {"pivotal": 6, "text_encoder_stop": 14}


def processes(count: int, strategy: str = "ddp") -> dict[str, Any]:
    return {"accelerator": "cpu", "devices": count, "strategy": strategy if count > 1 else "auto"}


@dataclass
class Runs:
    folder: Path

    def weights(self, name: str, step: int = STEPS) -> torch.Tensor:
        files = sorted((self.folder / name / f"snapshots/step-{step:06d}").glob("*.safetensors"))
        assert len(files) == 4  # UNet and text encoder, and an average of each
        tensors = [tensor for file in files for tensor in load_file(file).values()]
        return torch.cat([tensor.double().flatten() for tensor in tensors])

    def samples(self, name: str) -> list[list[Any]]:
        """Every sample that any process trained on, in the order of step and place."""
        lines = []
        for file in (self.folder / f"{name}-samples").glob("rank*.jsonl"):
            lines += [json.loads(line) for line in file.read_text().splitlines()]
        return sorted(lines)

    def difference(self, one: str, other: str) -> float:
        """Norm of the difference over the norm of all parameters."""
        first, second = self.weights(one), self.weights(other)
        return float((first - second).norm() / first.norm())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: BaseFolder) -> Runs:
    folder, base = tmp_path_factory.mktemp("processes"), tiny_base_folder("eps")

    def job(name: str, count: int = 1, steps: int = STEPS, **more: Any) -> dict[str, Any]:
        places = {"run": folder / name, "record": folder / f"{name}-samples"}
        return {**places, **COMMON, "steps": steps, "hardware": processes(count), **more}

    rows = [build_module(base).text.tokenizers[0].convert_tokens_to_ids("sks</w>")]
    phases = {**PHASES, "tokens": [rows]}
    searching = processes(2, "ddp_find_unused_parameters_true")

    def done(*jobs: dict[str, Any], count: int = 1) -> None:
        made = run_jobs(base, *jobs, processes=count)
        assert made.returncode == 0, made.stderr

    done(
        job("one"),
        job("accumulated", accumulate=2),
        job("phases", phases=phases),
        job("buckets", buckets=True),
    )
    done(
        job("two", count=2),
        job("half", count=2, steps=HALF),
        job("buckets-two", count=2, buckets=True),
        job("phases-two", phases=phases, hardware=searching),
        count=2,
    )
    for name, count, accumulate in (("two-then-one", 1, 2), ("two-then-four", 4, 1)):
        shutil.copytree(folder / "half", folder / name)
        shutil.copytree(folder / "half-samples", folder / f"{name}-samples")
        done(job(name, count=count, resume=True, accumulate=accumulate), count=count)
    return Runs(folder)


# What equals what.
OTHERS = {
    "accumulated": "one",
    "two": "one",
    "two-then-one": "one",
    "two-then-four": "one",
    "phases-two": "phases",
    "buckets-two": "buckets",
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_same_samples_with_the_same_noise(runs: Runs, other: str) -> None:
    expected = runs.samples(OTHERS[other])
    assert len(expected) == STEPS * 8  # 4 of the subject, 4 class images
    assert runs.samples(other) == expected


@pytest.mark.parametrize("other", OTHERS)
def test_the_same_weights_up_to_the_order_of_summation(runs: Runs, other: str) -> None:
    one = OTHERS[other]
    moved = runs.weights(one) - runs.weights(one, HALF)
    assert moved.norm() > 1e-3 * runs.weights(one).norm()
    assert runs.difference(one, other) < 1e-5


def test_two_processes_of_main_are_one_with_live_class_images(
    tmp_path: Path, tiny_base_folder: BaseFolder
) -> None:
    """With the frozen base's predictions, two subjects, masks and phases."""
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    place.draw_masks()
    second = {"pictures": str(place.pictures), "identifier": "dog", "class_noun": "dog"}
    settings: dict[str, object] = {
        "prior__images": "live",
        "prior__uses": 1,
        "prior__target": "base",
        "prior__batch": 4,
        "subjects": json.dumps([second]),
        "objective__mask_outside": 0.1,
        "training__batch": 4,
        "training__steps": 6,
        "training__pivotal": 0.3,
        "training__text_encoder_stop": 0.7,
        "snapshots__every": 2,
        "trainer__accelerator": "cpu",
    }
    more = {"trainer__devices": 2, "trainer__strategy": "ddp"}
    words = place.words("--name", "two", **settings, **more)
    made = forked(main.main, words, told=ranks(2))
    assert made.returncode == 0, made.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of summation in the sampler could turn a pixel's last bit
    try:
        one = place.train("one", **settings)
    finally:
        torch.set_num_threads(threads)
    (two,) = place.logs.glob("*_two")
    first, last, other = (flat_weights(*at) for at in ((one, 2), (one, 6), (two, 6)))
    assert (last - first).norm() > 1e-3 * last.norm()
    assert (last - other).norm() < 1e-5 * last.norm()


def flat_weights(run: Path, step: int) -> torch.Tensor:
    parts = [weights(run, step, part) for part in ("unet", "text_encoder")]
    return torch.cat([tensor.double().flatten() for part in parts for tensor in part.values()])
