"""What the base and the oracle reach, as `scores.json` and a sheet of samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.data.images import to_picture
from ldm.evaluation.metrics import Score, share
from ldm.models.base import load_base
from ldm.sampling.generate import generate
from ldm.sampling.grid import labelled_grid
from ldm.storybook import (
    NOUNS,
    SETTINGS,
    Scene,
    compose,
    random_design,
    random_scene,
    random_subject,
    render,
    subject_scene,
)
from ldm.storybook.oracle import StorybookOracle, as_batch
from ldm.storybook.pretraining.identity import (
    accepted,
    accepted_of_base,
    draw_gallery,
    embed,
)
from ldm.storybook.pretraining.lessons import VIEWS, views
from ldm.storybook.pretraining.oracle import SPOILER_NAMES, spoil
from ldm.storybook.pretraining.settings import PretrainSettings

SEED = 900_000  # of nothing that is trained on


def held_out_scenes(count: int, seed: int, accessory: str | None = "none") -> list[Scene]:
    """Scenes of combinations that pretraining never showed."""
    rng = np.random.default_rng(seed)
    return [
        random_scene(rng, accessory=accessory, pattern="plain", held_out=True) for _ in range(count)
    ]


def prompt_of(scene: Scene) -> str:
    """Class, colour and setting (and accessory, if any) in words."""
    worn = "" if scene.accessory == "none" else scene.accessory
    return compose(scene.noun, scene.colour, scene.setting, accessory=worn)


def score_base(
    folder: Path, oracle: StorybookOracle, prompts: int, seed: int = SEED
) -> dict[str, Score]:
    """Shares of pictures in which the oracle reads what the prompt names, each on so many prompts.

    Held-out combinations, default sampler, 25 steps, guidance 5. "accessory" is read on as many
    other prompts that name one.
    """
    base = load_base(folder)
    scores: dict[str, Score] = {}
    for accessory, attributes in (("none", ("class", "colour", "setting")), (None, ("accessory",))):
        scenes = held_out_scenes(prompts, seed, accessory)
        texts = [prompt_of(scene) for scene in scenes]
        pictures = list(generate(base, texts, range(seed, seed + prompts), batch=32))
        readings = oracle.read(pictures)
        for name in attributes:
            wanted = [getattr(s, "noun" if name == "class" else name) for s in scenes]
            named = [w for w in zip(wanted, readings, strict=True) if w[0] != "none"]
            scores[name] = share([r.words[name] == word for word, r in named])
        if accessory == "none":
            scores["none of these"] = share([r.none for r in readings])
    return scores


def score_oracle(
    oracle: StorybookOracle, renders: int, pairs: int, seed: int = SEED
) -> dict[str, Score]:
    """The oracle on fresh renders, on spoilt ones, and on pairs of designs of one class."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=None) for _ in range(renders)]
    drawn = [render(scene) for scene in scenes]
    readings = oracle.read(drawn)
    scores = {
        name: share(
            [r.words[name] == getattr(s, key) for s, r in zip(scenes, readings, strict=True)]
        )
        for name, key in (
            ("class", "noun"),
            ("colour", "colour"),
            ("setting", "setting"),
            ("accessory", "accessory"),
        )
    }
    scores["renders taken for none of these"] = share([r.none for r in readings])
    clean = as_batch(drawn[:1024])
    for kind, name in enumerate(SPOILER_NAMES):
        spoilt = [to_picture(p) for p in spoil(clean, rng, kind)]
        scores[f"caught: {name}"] = share([r.none for r in oracle.read(spoilt)])
    return {**scores, **score_pairs(oracle, pairs, seed)}


def _rivals(rng: np.random.Generator) -> list[Scene]:
    """Two things of one class: world objects of one colour in two designs, or subjects that differ
    in the design alone or in the colouring alone."""
    noun = NOUNS[rng.integers(len(NOUNS))]
    if rng.random() < 0.5:
        plain = random_scene(rng, noun=noun, pattern="plain", held_out=None)
        return [replace(plain, design=random_design(noun, rng)) for _ in range(2)]
    first, other = random_subject(rng, noun), random_subject(rng, noun)
    if rng.random() < 0.5:
        other = replace(first, design=other.design)
    else:
        other = replace(other, design=first.design)
    return [subject_scene(s, SETTINGS[0], "none", rng) for s in (first, other)]


def score_pairs(oracle: StorybookOracle, pairs: int, seed: int = SEED) -> dict[str, Score]:
    """Pairs of pictures of one class, half of one thing, half of two that differ in design only or
    colouring only: told apart by one threshold, set on other pairs."""
    rng = np.random.default_rng(seed)
    scenes = [v for _ in range(pairs) for thing in _rivals(rng) for v in views(thing, rng, VIEWS)]
    cells = embed(oracle, [render(scene) for scene in scenes]).reshape(pairs, 2, VIEWS, -1)
    same = np.einsum("fivd,fiwd->fivw", cells, cells)[..., 0, 1:].reshape(pairs, -1)
    other = np.einsum("fvd,fwd->fvw", cells[:, 0], cells[:, 1]).reshape(pairs, -1)
    other = other[:, : same.shape[1]]
    half = pairs // 2
    candidates = np.linspace(0, 1, 501)
    errors = [(same[:half] < c).mean() + (other[:half] >= c).mean() for c in candidates]
    threshold = candidates[int(np.argmin(errors))]
    told = np.concatenate([same[half:].ravel() >= threshold, other[half:].ravel() < threshold])
    return {"pairs of designs told apart": share(told.tolist())}


def score_early(oracle: StorybookOracle, work: Path) -> dict[str, Score]:
    """Pictures of the half-trained base that are refused. (Half of them were taught.)"""
    pictures = [
        Image.fromarray(p) for f in sorted(work.glob("half_trained_*.npy")) for p in np.load(f)
    ]
    if not pictures:
        return {}
    return {"caught: half-trained": share([r.none for r in oracle.read(pictures[1::2])])}


def sample_sheet(folder: Path, seed: int = SEED) -> Image.Image:
    """One held-out prompt a class, six seeds each."""
    base = load_base(folder)
    rng = np.random.default_rng(seed)
    prompts = [
        prompt_of(random_scene(rng, noun=noun, pattern="plain", held_out=True)) for noun in NOUNS
    ]
    columns = 6
    rows = [p for p in prompts for _ in range(columns)]
    drawn = list(generate(base, rows, range(len(rows)), batch=24))
    grid = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    return labelled_grid(grid, prompts)


def score_identity(
    oracle: StorybookOracle, base: Path, subjects: int, images: int, seed: int = SEED
) -> dict[str, Score]:
    """What `accepts` takes for a subject: fresh renders and the base's class images."""
    torch.manual_seed(seed)  # the posterior's sample
    model = load_base(base)
    gallery = draw_gallery(oracle, subjects, seed, model.vae)
    return {
        **accepted(gallery, oracle.rates["threshold"]),
        **accepted_of_base(model, oracle, gallery, images, seed),
    }


def score_stage(settings: PretrainSettings) -> None:
    """Measure; write `scores.json` and `samples.png` into the base's folder, and the rates of
    identity into the oracle's, unless that measured another base before."""
    torch.manual_seed(0)
    folder, oracle_folder = Path(settings.base), Path(settings.oracle_folder)
    oracle = StorybookOracle.load(oracle_folder)
    wanted = settings.score
    identity = score_identity(oracle, folder, wanted.subjects, wanted.class_images)
    scores = {
        "base": score_base(folder, oracle, wanted.prompts),
        "oracle": {
            **score_oracle(oracle, wanted.renders, wanted.pairs),
            **score_early(oracle, Path(settings.work)),
        },
        "identity": identity,
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    sample_sheet(folder).save(folder / "samples.png")
    if settings.start_from is None:
        about = json.loads((oracle_folder / "oracle.json").read_text())
        about["rates"] |= {name: round(score["value"], 5) for name, score in identity.items()}
        (oracle_folder / "oracle.json").write_text(json.dumps(about, indent=2) + "\n")
