"""Pictures of a report: which are shown, beside which others, and as what bytes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.data.images import load_picture
from ldm.errors import UserError
from ldm.evaluation.report.data import BASE, Drawn, RunFiles

SIDE = 192  # pixels: larger pictures are scaled down to this
EXACT = 96  # pixels: pictures up to this are kept as they are, without loss
BUDGET = 320  # pictures in a grid, about: with more rows or columns there are fewer in each cell
COLUMNS = 8  # snapshots in a grid, the chosen one among them
ROWS = 30  # prompts in a grid
CLASS_PICTURES = 16
SUBJECT_PICTURES = 24


@dataclass(frozen=True)
class Column:
    """A model in a grid. mark: "base", "chosen" or ""."""

    title: str
    drawn: Drawn
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """A prompt in a grid: for each column, its pictures of common seeds (None: not there)."""

    prompt: str
    half: str
    cells: list[list[Path | None]]


def columns(run: RunFiles) -> list[Column]:
    """The base, then snapshots in order; of more than COLUMNS the chosen, first, last and others
    at even distances."""
    steps = [key for key in run.steps if key in run.drawn]
    if len(steps) > COLUMNS:
        places = {round(i * (len(steps) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)}
        if run.chosen in steps and steps.index(run.chosen) not in places:
            chosen = steps.index(run.chosen)
            inner = places - {0, len(steps) - 1}
            places = places - {min(inner, key=lambda p: abs(p - chosen))} | {chosen}
        steps = [steps[place] for place in sorted(places)]
    base = [Column("untouched base", run.drawn[BASE], "base")] if BASE in run.drawn else []
    return base + [
        Column(f"step {key}", run.drawn[key], "chosen" if key == run.chosen else "")
        for key in steps
    ]


def rows(models: Sequence[Column], about: str, budget: int = BUDGET) -> list[Row]:
    """The prompts of one kind with each model's pictures; the same seeds all along a row.

    Seeds that all models have are taken first. As many for each cell as keep the grid within
    `budget` pictures: 1, 2 or 4.
    """
    prompts = list(dict.fromkeys(p for model in models for p in model.drawn.prompts(about)))[:ROWS]
    room = budget / max(1, len(prompts) * len(models))
    each = next((count for count in (4, 2) if count <= room), 1)
    made = []
    for prompt in prompts:
        seeds = [seed for model in models for seed in model.drawn.seeds(about, prompt)]
        shown = sorted(dict.fromkeys(seeds), key=lambda seed: -seeds.count(seed))[:each]
        cells = [[m.drawn.paths.get((about, prompt, seed)) for seed in shown] for m in models]
        half = next((h for m in models if (h := m.drawn.halves.get(prompt, ""))), "")
        made.append(Row(prompt, half, cells))
    return made


def pairs(before: Drawn, after: Drawn, about: str, count: int) -> list[tuple[Path, Path, str, int]]:
    """Pictures of two models with the same prompt and seed: one of each prompt first, then the
    second ones; at most `count`."""
    both = [key for key in before.paths if key[0] == about and key in after.paths]
    seen: dict[str, int] = {}
    order = []
    for place, (_, prompt, _) in enumerate(both):
        seen[prompt] = seen.get(prompt, 0) + 1
        order.append((seen[prompt], place))
    keys = [both[place] for _, place in sorted(order)[:count]]
    return [(before.paths[key], after.paths[key], key[1], key[2]) for key in keys]


def opened(path: Path, side: int = SIDE) -> Image.Image:
    """A picture as RGB, its long side at most `side` pixels. UserError: it cannot be read."""
    picture = load_picture(path, short_side=side)
    if max(picture.size) > max(side, EXACT):
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_url(path: Path) -> str | None:
    """A picture as a data: URL, small ones without loss; None where it cannot be read."""
    try:
        return encoded(opened(path))
    except UserError:
        return None


def encoded(picture: Image.Image) -> str:
    """WebP in a data: URL."""
    file = io.BytesIO()
    exact = max(picture.size) <= EXACT
    picture.save(file, format="WEBP", lossless=exact, quality=90 if exact else 82, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
