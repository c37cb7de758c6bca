"""Options of training: every pair of values runs, and each one changes what it should."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace import Workspace, difference, weights

OPTIONS: dict[str, tuple[object, ...]] = {
    "model__train_text_encoder": ("true", "false"),
    "model__gradient_checkpointing": ("false", "true"),
    "training__precision": ("fp32", "bf16-mixed", "16-mixed"),
    "training__accumulate": (1, 2),
    "training__schedule": ("constant", "linear", "cosine"),
    "training__min_snr_gamma": ("null", 5),
    "training__gradient_clip": (1.0, "null"),
    "training__warmup": (0, 1),
    "data__crop": ("center", "random"),
    "data__mirror": ("false", "true"),
    "data__cache": ("cache", "null"),
    "prior": ("made", "null"),
    "base": ("eps", "v"),
}


def covering(options: dict[str, tuple[object, ...]]) -> list[dict[str, object]]:
    """Few combinations in which every pair of two options' values occurs (greedily)."""
    pairs = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(options, 2)
        for x in options[a]
        for y in options[b]
    }
    rows = []
    while pairs:
        row: dict[str, object] = {}
        for pair in sorted(pairs, key=str):  # start from one that is missing, then fill greedily
            if all(row.get(name, value) == value for name, value in pair):
                row.update(pair)
        for name, values in options.items():
            row.setdefault(name, values[0])
        pairs -= {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(options, 2)}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> dict[str, Workspace]:
    kinds = ("eps", "v")
    return {
        kind: Workspace(tmp_path_factory.mktemp(kind), tiny_base_folder(kind)) for kind in kinds
    }


def test_covering_covers() -> None:
    rows = covering(OPTIONS)
    for a, b in itertools.combinations(OPTIONS, 2):
        seen = {(row[a], row[b]) for row in rows}
        assert seen == set(itertools.product(OPTIONS[a], OPTIONS[b]))
    assert len(rows) < 20


@pytest.mark.parametrize("number", range(len(covering(OPTIONS))))
def test_pairs_of_options_run(places: dict[str, Workspace], number: int) -> None:
    row = dict(covering(OPTIONS)[number])
    place = places[str(row.pop("base"))]
    if row["prior"] == "made":
        del row["prior"]
    if row["data__cache"] == "cache":
        del row["data__cache"]
    run = place.train(f"pair{number}", **row)
    for tensor in weights(run, 2).values():
        assert tensor.isfinite().all()


@pytest.fixture(scope="module")
def plain(places: dict[str, Workspace]) -> Path:
    return places["eps"].train("plain", samples__every=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"training__accumulate": 2},
        {"model__gradient_checkpointing": "true"},
        {"data__cache": "null"},
        {"samples__every": 1},
        {"snapshots__every": 2},
        {"prior__sampling_batch": 3},
        {"training__gradient_clip": 1e6},
    ],
    ids=str,
)
def test_options_that_change_no_result(
    places: dict[str, Workspace], plain: Path, settings: dict[str, object]
) -> None:
    name = "-".join(settings)
    same = places["eps"].train(f"same-{name}", **settings)
    loose = "training__accumulate" in settings or "training__gradient_clip" in settings
    assert difference(plain, same) <= (2e-3 if loose else 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"training__learning_rate": 2e-3},
        {"training__text_encoder_learning_rate": 1e-4},
        {"training__weight_decay": 0.5},
        {"training__betas": "[0.5,0.9]"},
        {"training__schedule": "cosine"},
        {"training__warmup": 2},
        {"training__gradient_clip": 0.01},
        {"training__precision": "bf16-mixed"},
        {"training__min_snr_gamma": 0.5},
        {"data__crop": "random"},
        {"data__mirror": "true"},
        {"data__resolution": 40},
        {"subject__prompt": "[V] on the beach"},
        {"subject__identifier": "zwx"},
        {"prior__weight": 0.1},
        {"prior__seed": 3},
        {"prior__scale": 2},
        {"prior__steps": 3},
        {"prior__sampler": "euler"},
        {"prior": "null"},
    ],
    ids=str,
)
def test_options_that_change_the_result(
    places: dict[str, Workspace], plain: Path, settings: dict[str, object]
) -> None:
    name = "-".join(f"{key}-{value}" for key, value in settings.items())
    name = "".join(letter for letter in name if letter.isalnum() or letter in "-_")
    other = places["eps"].train(f"other-{name}", **settings)
    part = "text_encoder" if "training__text_encoder_learning_rate" in settings else "unet"
    assert difference(plain, other, part=part) > 1e-6
