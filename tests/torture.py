"""Kill runs at random moments, let them go on, and compare every byte with a run left in peace.

    python -m tests.torture --kills 100 --seed 0

Each round starts a run of its own (class images are made afresh), kills it with SIGKILL while it
makes class images, trains, saves, samples or at any other moment, resumes it, and so on until it
ends. Status 0: no difference, and never more steps repeated than `training.save_every`.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.conftest import build_tiny_base
from tests.workspace import Workspace

ROOT = Path(__file__).parents[1]
SAVE_EVERY = 3
STEPS = 10
CLASS_IMAGES = 6
TIMES = ("samples_per_second", "peak_memory_gib", "seconds")  # columns that time decides
PATIENCE = 300.0  # seconds that one process may take
MOMENTS = ("class images", "training", "saving", "sampling", "any")

# What is trained in the rounds, in turn.
VARIANTS: dict[str, dict[str, object]] = {
    "cached": {"training.accumulate": 2, "ema.schedule": "power"},
    "live": {
        "prior.images": "live",
        "prior.count": 4,
        "prior.uses": 2,
        "training.precision": "bf16-mixed",
        "training.text_encoder_stop": 0.5,
    },
    "schedule-free": {
        "training.optimizer": "schedule_free_adamw",
        "prior.target": "base",
        "training.pivotal": 0.3,
    },
    "prodigy": {
        "training.optimizer": "prodigy",
        "training.learning_rate": 1.0,
        "objective.caption_dropout": 0.3,
        "data.crop": "random",
    },
}


@dataclass
class Place:
    """A folder in which one run lives; every path in its configuration is relative to it."""

    folder: Path

    def words(self, variant: str) -> list[str]:
        settings = Workspace(self.folder, Path("base")).settings
        inside = {"logs": "logs", "subject.pictures": "pictures", "data.cache": "cache"}
        settings |= inside | {
            "prior.root": "prior",
            "prior.count": CLASS_IMAGES,
            "training.steps": STEPS,
            "training.save_every": SAVE_EVERY,
            "training.schedule": "cosine",
            "snapshots.every": 4,
            "snapshots.keep": 2,
            "samples.every": 4,
            "samples.count": 1,
            **VARIANTS[variant],
        }
        pairs = [f"{key}={value}" for key, value in settings.items()]
        prompts = "samples.prompts=['a drawing of [V] robot', 'a drawing of a robot']"
        base = str(ROOT / "configs/dreambooth.yaml")
        return ["--base", base, *pairs, prompts, "--name", "torture"]

    @property
    def run(self) -> Path | None:
        """The run folder, once it has its configuration."""
        found = sorted(self.folder.glob("logs/*_torture/config.yaml"))
        return found[-1].parent if found else None

    @contextlib.contextmanager
    def running(self, variant: str) -> Iterator[subprocess.Popen]:
        """Start the run, or go on with it; what still runs at the end is killed."""
        words = ["--resume", str(self.run.relative_to(self.folder))] if self.run else None
        command = [sys.executable, str(ROOT / "main.py"), *(words or self.words(variant))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "output.txt").open("a") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def rows(self) -> list[dict[str, str]]:
        """The complete rows of metrics.csv, without what time decides."""
        if self.run is None or not (self.run / "metrics.csv").exists():
            return []
        with (self.run / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{key: row[key] for key in row if key not in TIMES} for row in rows]

    def saved_step(self) -> int:
        """The step of the newest resume state that is whole."""
        from ldm.checkpoint import find_resume

        point = find_resume(self.run) if self.run else None
        return point.step if point else 0


@dataclass
class Result:
    """What the rounds came to."""

    kills: Counter = field(default_factory=Counter)  # moment -> how often
    rounds: int = 0
    repeated: list[int] = field(default_factory=list)  # steps, per kill
    differences: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"rounds finished        {self.rounds}"
        yield f"kills                  {sum(self.kills.values())}: " + ", ".join(
            f"{count} {moment}" for moment, count in self.kills.most_common()
        )
        most = max(self.repeated, default=0)
        yield f"steps repeated a kill  {most} at most ({SAVE_EVERY} allowed)"
        yield f"differences            {len(self.differences)}"
        yield from self.differences


def torture(
    folder: Path, kills: int, seed: int, variants: tuple[str, ...] = tuple(VARIANTS)
) -> Result:
    """Rounds of killed runs until `kills` are done and the last round has ended."""
    folder = folder.resolve()  # links lead from one folder inside it to another
    chance, result = random.Random(seed), Result()
    base = folder / "base"
    build_tiny_base(base, "eps")
    references: dict[str, Place] = {}
    while sum(result.kills.values()) < kills:
        variant = variants[result.rounds % len(variants)]
        if variant not in references:
            references[variant] = new_place(folder / f"reference-{variant}", base)
            with references[variant].running(variant) as whole:
                if whole.wait(PATIENCE) != 0:
                    raise RuntimeError(f"{variant} fails undisturbed: {references[variant].folder}")
        place = new_place(folder / f"round-{result.rounds:03d}-{variant}", base)
        one_round(place, variant, chance, kills, result)
        result.rounds += 1
        found = list(differences(references[variant], place))
        result.differences += [f"{place.folder.name}: {line}" for line in found]
        print(f"round {result.rounds} ({variant}): {sum(result.kills.values())} kills so far, "
              f"{len(found)} differences", flush=True)  # fmt: skip
    return result


def new_place(folder: Path, base: Path) -> Place:
    folder.mkdir(parents=True)
    (folder / "base").symlink_to(base, target_is_directory=True)
    return Place(folder)


def one_round(
    place: Place, variant: str, chance: random.Random, kills: int, result: Result
) -> None:
    """Start, kill, resume until the run has ended by itself."""
    while True:
        with place.running(variant) as process:
            moment = None
            if sum(result.kills.values()) < kills:
                moment = wait_for_moment(place, process, chance)
            if moment is None:
                if process.wait(PATIENCE) != 0:
                    result.differences.append(
                        f"{place.folder.name}: status {process.returncode}, see its output.txt"
                    )
                return
        result.kills[moment] += 1
        lost = len(place.rows()) - place.saved_step()
        result.repeated.append(max(0, lost))
        if lost > SAVE_EVERY:
            result.differences.append(f"{place.folder.name}: {lost} steps lost with one kill")


def wait_for_moment(place: Place, process: subprocess.Popen, chance: random.Random) -> str | None:
    """Wait until a chosen moment has come; None where the process ended before it did."""
    moment = chance.choice(MOMENTS)
    if made_class_images(place) < CLASS_IMAGES and chance.random() < 0.5:
        moment = "class images"
    wanted_step = chance.randint(place.saved_step(), STEPS)
    delay = chance.uniform(0, {"saving": 0.01, "any": 12.0}.get(moment, 0.3))
    began = time.monotonic()
    while not has_come(moment, place, wanted_step):
        if process.poll() is not None:
            return None
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError(f"{place.folder} hangs, see its output.txt")
        time.sleep(0.001)
    until = time.monotonic() + delay
    while time.monotonic() < until:
        if process.poll() is not None:
            return None
        time.sleep(0.001)
    return moment


def has_come(moment: str, place: Place, step: int) -> bool:
    """Whether the run is at such a moment now (training, sampling: at or after `step`)."""
    if moment == "any":
        return True
    if moment == "class images":  # none yet, or some that are to be made on, but not all
        begun = any(place.folder.glob("prior/*"))
        return begun and step % CLASS_IMAGES <= made_class_images(place) < CLASS_IMAGES
    run = place.run
    if run is None:
        return False
    if moment == "saving":
        hidden = [*run.glob(".*"), *run.glob("snapshots/.*")]
        return any("lock" not in path.name for path in hidden)
    if len(place.rows()) < step:
        return False
    drawn = len(list(run.glob("samples/step-*.png")))
    return moment == "training" or drawn <= len(place.rows()) // 4


def made_class_images(place: Place) -> int:
    return len(list(place.folder.glob("prior/*/*.png")))


def differences(whole: Place, parted: Place) -> Iterator[str]:
    """A line for everything in which two ended runs differ."""
    runs = whole.run, parted.run
    assert runs[0] and runs[1]
    for pattern in ("snapshots/*/*", "samples/*.png", "sheet.png"):
        yield from differing_files(runs[0], runs[1], pattern)
    yield from differing_files(whole.folder, parted.folder, "prior/*/*.png")
    if whole.rows() != parted.rows():
        yield "metrics.csv differs"
    ends = [torch.load(run / "resume.ckpt", weights_only=True) for run in runs if run]
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        for where in unequal(ends[0][part], ends[1][part], part):
            yield f"resume.ckpt: {where} differs"


def differing_files(one: Path, other: Path, pattern: str) -> Iterator[str]:
    names = [{str(p.relative_to(top)) for p in top.glob(pattern)} for top in (one, other)]
    for name in sorted(names[0] ^ names[1]):
        yield f"{name} is in one only"
    for name in sorted(names[0] & names[1]):
        if content(one / name, one.name) != content(other / name, other.name):
            yield f"{name} differs"


def content(path: Path, run: str) -> Any:
    """A file's bytes; of a picture its pixels and texts, without the run's own name in these."""
    if path.suffix != ".png":
        return path.read_bytes()
    with Image.open(path) as picture:
        texts: dict[str, str] = picture.text  # type: ignore[attr-defined]
        return picture.tobytes(), json.dumps(texts).replace(run, "RUN")


def unequal(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where tensors and plain containers are not equal to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from unequal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from unequal(*pair, f"{where}/{place}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif type(one) is not type(other) or one != other:
        yield where


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="default: all in turn")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave everything here")
    args = parser.parse_args(words)
    keep = args.keep
    if keep and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        parser.error(f"--keep {keep} is not an empty folder; name a new one")
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        result = torture(folder, args.kills, args.seed, tuple(args.variant or VARIANTS))
    print(*result.lines(), sep="\n")
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())
