"""Who is compared: the project's commands, diffusers' script, and the bare networks."""

import csv
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.speed.measure import ROOT, Numbers, Ran, run, seconds_per_step, step_times
from ldm.run.memory.heap import return_large_blocks

STEPS, WARM = 22, 6  # of a training run, and how many of them are not counted
FEW = 4, 1  # the same where a step takes many seconds
NEVER = 100_000
FULL_SIZE = "data/cache/full_size"  # where bases of random weights are made, once
PROMPT, CLASS_PROMPT = "a drawing of [V] robot", "a drawing of a robot"


@dataclass(frozen=True)
class Place:
    """Where things lie. checkout: of diffusers' sources; None: nothing of it is run."""

    folder: Path  # for what is made here
    base: Path
    pictures: Path
    class_pictures: Path
    checkout: Path | None
    python: Path  # that has what diffusers' script imports

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        made = self.folder / name
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        return made


def bare(place: Place, what: str, *numbers: float, options: Sequence[str] = ()) -> Numbers:
    words = [str(number) for number in numbers]
    command = [sys.executable, "-m", "bench.speed.bare", what, str(place.base), *words]
    ran = run([*command, *options])
    told: dict[str, float] = json.loads(ran.output.splitlines()[-1])
    return {"peak_gib": ran.peak_gib, "whole": ran.seconds, **told}


def train(
    place: Place, *overrides: str, steps: int = STEPS, watched: bool = False
) -> tuple[Ran, Path]:
    """The project's training, everything off that is not a training step."""
    logs = place.fresh("ours")
    settings = {
        "model.base": place.base,
        "logs": logs,
        "subject.pictures": place.pictures,
        "subject.prompt": f'"{PROMPT}"',
        "data.cache": place.folder / "cache",
        "prior.prompt": f'"{CLASS_PROMPT}"',
        "prior.folder": place.class_pictures,
        "prior.target": "data",
        "prior.weight": 1.0,
        "prior.caption_dropout": 0.0,
        "training.steps": steps,
        "training.learning_rate": 1e-6,
        "training.text_encoder_learning_rate": 1e-6,
        "training.schedule": "constant",
        "training.pivotal": 0.0,
        "training.precision": "fp32",
        "training.save_every": NEVER,
        "snapshots.every": NEVER,
        "samples.every": 0,
        "evaluation": "null",
        "trainer.accelerator": "cpu",
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "main.py", "--base", "configs/dreambooth.yaml", *given, *overrides]
    ran = run(command, watched=watched)
    (folder,) = logs.iterdir()
    return ran, folder


def ours(place: Place, *overrides: str, steps: int = STEPS, warm: int = WARM) -> Numbers:
    ran, folder = train(place, *overrides, steps=steps)
    return {"seconds": seconds_per_step(folder, warm), "peak_gib": ran.peak_gib}


def script(place: Place, class_folder: Path, *options: str, steps: int = STEPS) -> tuple[Ran, Path]:
    """diffusers' train_dreambooth.py with the text encoder, 4 + 4 samples."""
    assert place.checkout is not None, "asked for only where there is one"
    out = place.fresh("script")
    words = {
        "pretrained_model_name_or_path": place.base,
        "instance_data_dir": place.pictures,
        "instance_prompt": PROMPT.replace("[V]", "sks"),
        "class_data_dir": class_folder,
        "class_prompt": CLASS_PROMPT,
        "num_class_images": len(list(place.class_pictures.iterdir())),
        "resolution": 64,
        "train_batch_size": 4,
        "max_train_steps": steps,
        "learning_rate": 1e-6,
        "lr_scheduler": "constant",
        "checkpointing_steps": NEVER,
        "report_to": "tensorboard",
        "output_dir": out,
    }
    command: list[str | Path] = [
        place.python,
        place.checkout / "examples" / "dreambooth" / "train_dreambooth.py",
        "--with_prior_preservation",
        "--train_text_encoder",
    ]
    for key, value in words.items():
        command += [f"--{key}", str(value)]
    return run([*command, *options]), out


def theirs(place: Place, *options: str, steps: int = STEPS, warm: int = WARM) -> Numbers:
    ran, out = script(place, place.class_pictures, *options, steps=steps)
    return {"seconds": seconds_per_step(out, warm), "peak_gib": ran.peak_gib}


def our_class_images(place: Place, count: int) -> Numbers:
    """Seconds that class images add to a run: one that makes them less one that has them."""
    made = place.fresh("our_class_images")
    words = ["prior.folder=null", f"prior.root={made}", f"prior.count={count}", "data.cache=null"]
    sooner, _ = train(place, *words, steps=1)
    later, _ = train(place, *words, steps=1)
    return {"seconds": sooner.seconds - later.seconds}


def their_class_images(place: Place, count: int) -> Numbers:
    made = place.fresh("their_class_images")
    words = ["--num_class_images", str(count)]
    sooner, _ = script(place, made, *words, steps=1)
    later, _ = script(place, made, *words, steps=1)
    return {"seconds": sooner.seconds - later.seconds}


def first_step(place: Place) -> Numbers:
    """Seconds from the command to the end of the first optimizer step."""
    ran, folder = train(place, steps=1)
    return {"seconds": step_times(folder)[0] - ran.began}


def column(folder: Path, name: str) -> list[float]:
    """Of metrics.csv, a number for each step."""
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def command_line(place: Place, words: Sequence[str]) -> Numbers:
    """Seconds of `python WORDS`, whatever its exit status is."""
    inner = f"import subprocess, sys; subprocess.run([sys.executable, *{list(words)!r}])"
    return {"seconds": run([sys.executable, "-S", "-c", inner]).seconds}


def true_size(place: Place) -> Place:
    """With random weights of Stable Diffusion 1.5's architecture in the base's place."""
    from tests.full_size import folder_of

    return_large_blocks()  # memory is scarce, and this process stays
    return replace(place, base=fp32_copy(folder_of("sd15", ROOT / FULL_SIZE), place.folder))


def fp32_copy(base: Path, folder: Path) -> Path:
    """The base with weights in float32: diffusers' script takes no others."""
    from safetensors.torch import load_file, save_file

    made = folder / base.name
    if not made.is_dir():
        shutil.copytree(base, made)
        for file in made.rglob("*.safetensors"):
            tensors = {key: value.float() for key, value in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
        for config in made.rglob("config.json"):  # transformers goes by what it says
            config.write_text(config.read_text().replace('"float16"', '"float32"'))
    return made


def pictures_of(folder: Path, into: Path) -> Path:
    """Its pictures alone: diffusers' script opens every file."""
    into.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*.png")):
        shutil.copy(file, into)
    return into


def repeated(folder: Path, into: Path, count: int) -> Path:
    """`count` files, its pictures in turn: diffusers' script ends each round through them with what
    is left of a batch, so that with 5 and batches of 4 every second step had 1 + 1 samples."""
    into.mkdir(parents=True, exist_ok=True)
    for number, file in zip(range(count), itertools.cycle(sorted(folder.iterdir())), strict=False):
        shutil.copy(file, into / f"{number:02d}.png")
    return into


def oracle_says(folder: Path) -> dict[str, float]:
    """Shares of a folder's pictures that show the class, and nothing that is known."""
    from PIL import Image

    from ldm.storybook.oracle import load_oracle

    files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".png", ".jpg")]
    read = load_oracle().read([Image.open(file).convert("RGB") for file in files])
    count = len(read)
    return {
        "robots": sum(one.words["class"] == "robot" and not one.none for one in read) / count,
        "nothing": sum(one.none for one in read) / count,
        "n": count,
    }
