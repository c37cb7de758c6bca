"""A folder with all that `main.py` needs for a tiny run: pictures, and where things are written."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

import main

MAIN_JOB = Path(__file__).parent.parent / "configs" / "dreambooth.yaml"


@dataclass
class Workspace:
    """Runs `main.py` in this process on a tiny random base."""

    folder: Path
    base: Path
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures = self.folder / "pictures"
        self.logs = self.folder / "logs"
        self.settings = {
            "model.base": self.base,
            "subject.pictures": self.pictures,
            "subject.class_noun": "robot",
            "logs": self.logs,
            "data.cache": self.folder / "cache",
            "prior.root": self.folder / "prior",
            "prior.count": 3,
            "prior.prompt": "a drawing of a robot",
            "prior.target": "data",
            "prior.steps": 2,
            "prior.sampling_batch": 2,
            "prior.batch": 2,
            "prior.weight": 1.0,
            "prior.caption_dropout": "null",
            "training.steps": 2,
            "training.batch": 2,
            "training.precision": "fp32",
            "training.learning_rate": 1e-3,
            "training.text_encoder_learning_rate": "null",
            "training.schedule": "constant",
            "training.pivotal": 0.0,
            "training.save_every": 1,
            "snapshots.every": 1,
            "sampling.steps": 2,
            "samples.every": 0,
            "trainer.accelerator": "cpu",
            "evaluation": "null",
            **self.settings,
        }
        self.draw_pictures()

    def draw_pictures(self) -> None:
        self.pictures.mkdir(parents=True, exist_ok=True)
        for number, colour in enumerate(("red", "green", "blue")):
            picture = Image.linear_gradient("L").convert("RGB").resize((48 + 8 * number, 40))
            picture.paste(colour, (4, 4 + 8 * number, 20, 30))
            picture.save(self.pictures / f"{number}.png")

    def draw_masks(self) -> None:
        """Beside each picture, of its left half."""
        for picture in sorted(self.pictures.glob("?.png")):
            with Image.open(picture) as opened:
                mask = Image.new("L", opened.size)
                mask.paste(255, (0, 0, opened.width // 2, opened.height))
            mask.save(picture.with_suffix(".mask.png"))

    def words(self, *more: str, **settings: object) -> list[str]:
        """The command line; `settings` replace ours, with __ for the dots."""
        given = {name.replace("__", "."): value for name, value in settings.items()}
        merged = {**self.settings, **given}
        if str(merged.get("prior")) == "null":
            merged = {key: value for key, value in merged.items() if not key.startswith("prior.")}
        pairs = [f"{key}={value}" for key, value in merged.items()]
        return ["--base", str(MAIN_JOB), *pairs, *more]

    def main(self, *more: str, **settings: object) -> int:
        return main.main(self.words(*more, **settings))

    def train(self, name: str, *more: str, **settings: object) -> Path:
        """A whole run; its folder."""
        assert self.main("--name", name, *more, **settings) == 0
        (run,) = self.logs.glob(f"*_{name}")
        return run


def evaluated(folder: Path) -> dict[str, object]:
    """Settings of a small evaluation by an oracle that reads nothing but brightness."""
    return {
        "evaluation.oracle": "tests.evaluation.fake:BrightnessOracle",
        "evaluation.images": 2,
        "evaluation.class_images": 6,
        "evaluation.unrelated_images": 2,
        "evaluation.steps": 2,
        "evaluation.root": folder / "bases",
    }


def weights(run: Path, step: int, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(run / "snapshots" / f"step-{step:06d}" / f"{part}.safetensors")


def difference(first: Path, second: Path, step: int = 2, part: str = "unet") -> float:
    """Largest difference between two runs' snapshots."""
    ours, theirs = weights(first, step, part), weights(second, step, part)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)
