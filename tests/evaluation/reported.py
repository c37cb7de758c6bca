"""A run folder as training and evaluation leave it, with made-up numbers and tiny pictures."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.evaluation.measured import Measured, write_measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.pictures import ABOUT, HALVES, KINDS, Asked
from ldm.evaluation.rows import rows_of

SUBJECT = ("a drawing of sks robot in the snow", "a drawing of sks robot on the moon")
CLASS = ("a drawing of a robot",)
UNRELATED = ("a drawing of a dog", "a drawing of a cat")

Draw = Callable[[str, str, int, str], Image.Image]  # about, prompt, seed, model -> picture


def gradient(about: str, prompt: str, seed: int, model: str) -> Image.Image:
    """A tiny picture that is another one for other arguments."""
    colour = np.random.default_rng(abs(hash_of(about, prompt, str(seed), model)) % 2**32)
    picture = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    picture.paste(tuple(int(c) for c in colour.integers(256, size=3)), (2, 2, 10, 10))
    return picture


def hash_of(*words: str) -> int:
    """As `hash`, but the same in every process."""
    return int.from_bytes("|".join(words).encode()[-40:], "big")


def score(value: float, half: float = 0.02, n: int = 24) -> Score:
    low = max(0.0, value - half) if value >= 0 else value - half
    return Score(value=value, low=low, high=value + half, n=n)


def scores(trained: float) -> dict[str, Score]:
    """Every kind of metric; `trained` from 0 (the base) to 1 (much too long)."""
    x = trained
    rise = 1 - np.exp(-5 * x)
    return {
        "subject/fidelity/oracle": score(0.21 + 0.7 * rise),
        "subject/fidelity/dino": score(0.34 + 0.4 * rise),
        "subject/fidelity/clip": score(0.71 + 0.12 * rise),
        "subject/identity": score(0.95 * rise, 0.05),
        "subject/class": score(0.9 + 0.1 * rise),
        "subject/none": score(0.03),
        "subject/prompt/clip": score(0.305 - 0.04 * x),
        "subject/prompt/oracle": score(0.93 - 0.4 * x * x),
        "subject/setting": score(0.95 - 0.3 * x),
        "subject/accessory": score(0.9 - 0.5 * x),
        "subject/diversity/oracle": score(0.4 - 0.25 * rise),
        "subject/diversity/lpips_vgg16": score(0.52 - 0.2 * rise),
        "class/diversity/oracle": score(0.62 - 0.35 * x, n=512),
        "subject/copying/oracle": score(-0.2 + 0.25 * rise),
        "subject/copied/oracle": score(0.02 + 0.6 * x * x),
        "class/pres/dino": score(0.35 + 0.3 * x, n=512),
        "class/drift/oracle": score(0.5 * x, 0.02, 512),
        "class/kid/oracle": score(0.002 + 0.09 * x, 0.001, 512),
        "class/change/colour": score(0.04 + 0.5 * x, n=512),
        "class/identity": score(0.4 * x * x, n=512),
        "unrelated/drift/oracle": score(0.2 * x, 0.02, 56),
        "unrelated/identity": score(0.1 * x * x, n=56),
        "loss/subject": score(0.11 - 0.04 * rise, 0.005, 20),
        "loss/class": score(0.09 + 0.05 * x, 0.005, 64),
    }


def draw_pictures(
    folder: Path,
    model: str,
    draw: Draw = gradient,
    prompts: tuple[Sequence[str], ...] = (SUBJECT, CLASS, UNRELATED),
    seeds: Sequence[int] = (1000, 1001),
    better: float = 0.0,
) -> None:
    """Pictures, pictures.json, pictures.csv and scores.json of one model."""
    asked = [
        Asked(about, prompt, seed, {}, HALVES[place % 2] if about == "subject" else "")
        for about, several in zip(KINDS, prompts, strict=True)
        for place, prompt in enumerate(several)
        for seed in seeds
    ]
    rows: list[dict[str, Any]] = []
    for number, (one, row) in enumerate(zip(asked, rows_of(asked), strict=True)):
        path = folder / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(one.about, one.prompt, one.seed, model).save(path)
        fidelity = {"fidelity/oracle": 0.3 + better + 0.01 * (number % 5)}
        own = fidelity if one.about == "subject" else {}
        rows.append({**row, "identity": int(number % 2 == 0), **own})
    content = {"asked": [asdict(one) for one in asked]}
    (folder / ABOUT).write_text(json.dumps(content), encoding="utf-8")
    about = {"identifier": "sks", "training": "aa", "heldout": "bb", "oracle": "fake:Oracle"}
    write_measured(Measured({half: scores(0.5) for half in HALVES}, rows, about, folder))


def gate(name: str, passed: bool, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": value, "limit": limit, "advice": "fewer steps"}


def make_evaluation(run: Path, steps: Sequence[int], chosen: int | None) -> None:
    """evaluation.json beside the pictures."""
    ends = [step / (2 * max(steps)) + 0.1 for step in steps]
    result = {
        "base": scores(0.0),
        "snapshots": {str(step): scores(x) for step, x in zip(steps, ends, strict=True)},
        "choosing": {"base": scores(0.0), "snapshots": {}, "prompts": [SUBJECT[0]]},
        "reporting": {"prompts": [SUBJECT[1]]},
        "chosen": chosen,
        "reasons": ["the likest of those that passed every gate"],
        "verdict": "It draws the subject. Step 200 is chosen.",
        "gates": {
            str(step): [
                gate("subject/fidelity/oracle (half of the way)", True, 0.7, 0.57),
                gate("class/identity", True, 0.4 * x * x, 0.05),
                gate("unrelated/drift/oracle", 0.2 * x < 0.1, 0.2 * x, 0.1),
            ]
            for step, x in zip(steps, ends, strict=True)
        },
        "ceiling": {"subject/fidelity/oracle": score(0.93)},
        "floor": {"class/change/colour": score(0.05), "class/kid/oracle": score(0.001)},
        "missing": {"clip": "the model cannot be had: no network"},
        "oracle": {"threshold": 0.71, "other designs of the class": 0.008},
        "references": {"heldout": 1, "training": 2, "compared_with": "heldout"},
        "seed": 1000,
        "images": {"subject": 2, "class": 2, "unrelated": 2},
        "sampling": {"sampler": "dpmpp_2m", "steps": 12, "scale": 5.0},
        "precision": "fp32",
        "versions": {"torch": "2.13.0"},
        "base_fingerprint": "0123456789abcdef",
        "base_pictures": "evaluation/base",
        "subject": {"identifier": "sks", "class_noun": "robot"},
    }
    (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")


def make_run(
    folder: Path,
    name: str = "run",
    steps: Sequence[int] = (100, 200),
    chosen: int | None = 200,
    draw: Draw = gradient,
    **pictures: Any,
) -> Path:
    """FOLDER/NAME, a whole run of FOLDER/subject; returns it."""
    run = folder / name
    subject = folder / "subject"
    (subject / "heldout").mkdir(parents=True, exist_ok=True)
    for place in ("0.png", "1.png", "heldout/0.png"):
        draw("own", place, 0, "real").save(subject / place)
    draw_pictures(run / "evaluation/base", "base", draw, **{**pictures, "better": 0.0})
    for step in steps:
        draw_pictures(run / f"evaluation/step-{step:06d}", name + str(step), draw, **pictures)
    make_evaluation(run, steps, chosen)
    (run / "config.yaml").write_text(f"subject:\n  pictures: {subject}\n", encoding="utf-8")
    facts = {"identifier": "sks", "class_noun": "robot", "steps": max(steps), "seed": 0}
    facts |= {"base_fingerprint": "0123456789abcdef", "pictures": {"0.png": "aa", "1.png": "bb"}}
    facts |= {"command": "python main.py --base configs/dreambooth.yaml"}
    (run / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    noise = np.random.default_rng(0)
    with (run / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "loss/instance", "loss/prior", "seconds"])
        for step in range(1, max(steps) + 1):
            instance, prior = 0.1 + 0.3 / step + 0.02 * noise.random(), 0.09 + 0.03 * noise.random()
            writer.writerow([step, instance + prior, instance, prior, step * 0.1])
    return run
