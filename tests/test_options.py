"""Options of training: every pair of values runs, and each one changes what it should."""

import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.options import OPTIONS, allowed, covering, pairs_of
from tests.workspace import Workspace, difference, weights

ROWS = covering()


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> dict[str, Workspace]:
    made = {}
    for kind in map(str, OPTIONS["base"]):
        settings: dict[str, object] = {"training.save_every": 2}
        made[kind] = Workspace(tmp_path_factory.mktemp(kind), tiny_base_folder(kind), settings)
        made[kind].draw_masks()
        write_other_vae(made[kind])
    return made


def write_other_vae(place: Workspace) -> None:
    """Of the same form, whose latents are others."""
    shutil.copytree(place.base / "vae", place.folder / "vae")
    path = place.folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["quant_conv.bias"] += 1
    save_file(tensors, path)


def test_covering_covers() -> None:
    seen = {frozenset(two) for row in ROWS for two in itertools.combinations(row.items(), 2)}
    assert seen == pairs_of()
    assert all(map(allowed, ROWS))
    assert len(ROWS) <= 48


def settings_of(place: Workspace, row: Mapping[str, object]) -> dict[str, object]:
    """The keyword arguments of `Workspace.train` for a row of OPTIONS."""
    row = dict(row)
    prior, subjects = row.pop("prior"), row.pop("subjects")
    if row["data__cache"] == "cache":
        del row["data__cache"]
    if row["model__vae"] == "other":
        row["model__vae"] = place.folder / "vae"
    if prior == "null":
        row["prior"] = "null"
    elif prior == "folder":
        row["prior__folder"] = place.pictures
    else:
        row["prior__images"] = prior
    if subjects == "two":
        second = {"pictures": str(place.pictures), "identifier": "dog", "class_noun": "dog"}
        row["subjects"] = json.dumps([second])
    if (kind := row.pop("adapter")) == "null":
        row = {key: value for key, value in row.items() if not key.startswith("adapter__")}
    else:
        row |= {"adapter__kind": kind, "adapter__rank": 4}
    if row["training__optimizer"] == "torch.optim:SGD":
        row["training__optimizer_arguments"] = "{momentum: 0.9}"
    if str(prior) == "null":
        row = {key: value for key, value in row.items() if not key.startswith("prior__")}
    return row


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_pairs_of_options_run(places: dict[str, Workspace], number: int) -> None:
    row = dict(ROWS[number])
    place = places[str(row.pop("base"))]
    run = place.train(f"pair{number}", **settings_of(place, row))
    for part in ("unet", "text_encoder"):
        if (run / "snapshots/step-000002" / f"{part}.safetensors").exists():
            for tensor in weights(run, 2, part).values():
                assert tensor.isfinite().all()
    start = load_file(place.base / "unet/diffusion_pytorch_model.safetensors")
    if row["adapter"] != "null":
        start = weights(run, 1)
    ends = weights(run, 2).items()
    assert any(not torch.equal(start[key].to(value.dtype), value) for key, value in ends)


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
        {"prior__sampling_batch": 3, "prior__root": "OWN"},  # the other's would be used
        {"training__gradient_clip": 1e6},
    ],
    ids=str,
)
def test_options_that_change_no_result(
    places: dict[str, Workspace], plain: Path, settings: dict[str, object]
) -> None:
    name = "-".join(settings)
    if "prior__root" in settings:
        settings = {**settings, "prior__root": places["eps"].folder / "own-prior"}
    same = places["eps"].train(f"same-{name}", **settings)
    loose = "training__accumulate" in settings or "training__gradient_clip" in settings
    assert difference(plain, same) <= (2e-3 if loose else 1e-6)


LORA: dict[str, object] = {"adapter__kind": "lora", "adapter__rank": 2}
# What is on already, and what is then changed.
CHANGES: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {"seed": 1}),
    ({}, {"model__prediction_type": "v_prediction"}),
    ({}, {"model__clip_skip": 1}),
    ({}, {"model__prompt_chunks": 2}),
    ({}, {"training__learning_rate": 0.002}),
    ({}, {"training__text_encoder_learning_rate": 0.0001}),
    ({}, {"training__weight_decay": 0.5}),
    ({}, {"training__betas": "[0.5,0.9]"}),
    ({}, {"training__schedule": "cosine"}),
    ({}, {"training__warmup": 2}),
    ({}, {"training__gradient_clip": 0.01}),
    ({}, {"training__precision": "bf16-mixed"}),
    (
        {},
        {
            "training__optimizer": "adamw_8bit",
            "training__optimizer_arguments": "{min_8bit_size: 1}",
        },
    ),
    ({"training__precision": "bf16-mixed"}, {"training__weights": "bf16"}),
    ({}, {"training__optimizer": "adafactor"}),
    ({}, {"training__optimizer": "prodigy"}),
    ({}, {"training__optimizer": "schedule_free_adamw"}),
    ({}, {"training__optimizer": "lion"}),
    ({}, {"training__optimizer": "torch.optim:SGD"}),
    ({}, {"training__optimizer_arguments": "{eps: 1.0e-2}"}),
    ({}, {"training__pivotal": 0.5}),
    ({"training__pivotal": 0.5}, {"training__pivotal_learning_rate": 0.001}),
    ({}, {"training__text_encoder_stop": 0.5}),
    (LORA, {"adapter__dropout": 0.5}),
    (LORA, {"adapter__alpha": 8.0}),
    (LORA, {"training__pivotal": 0.5}),
    (LORA, {"adapter__kind": "rslora"}),
    (LORA, {"adapter__text_encoder_alpha": 8.0}),
    (LORA, {"adapter__timestep_rank": 1}),
    (
        {**LORA, "adapter__rank": 8, "adapter__timestep_rank": 1},
        {"adapter__timestep_rank_power": 3.0},
    ),
    ({}, {"objective__loss": "huber"}),
    ({}, {"objective__loss": "smooth_l1"}),
    ({"objective__loss": "huber"}, {"objective__huber_c": 0.5}),
    ({"objective__loss": "huber"}, {"objective__huber_schedule": "constant"}),
    ({"objective__loss": "huber"}, {"objective__huber_schedule": "exponential"}),
    ({"objective__timestep_max": 200}, {"objective__weighting": "min_snr"}),  # SNR above 5
    ({"objective__weighting": "min_snr"}, {"objective__min_snr_gamma": 0.5}),
    ({}, {"objective__weighting": "soft_min_snr"}),
    ({}, {"objective__weighting": "debiased"}),
    ({}, {"objective__weighting": "p2"}),
    ({"objective__weighting": "p2"}, {"objective__p2_gamma": 0.5}),
    ({"objective__weighting": "p2"}, {"objective__p2_k": 3.0}),
    ({}, {"objective__noise_offset": 0.1}),
    ({}, {"objective__pyramid_noise": 0.3}),
    ({}, {"objective__input_perturbation": 0.1}),
    ({}, {"objective__timesteps": "logit_normal"}),
    ({"objective__timesteps": "logit_normal"}, {"objective__logit_mean": 1.0}),
    ({"objective__timesteps": "logit_normal"}, {"objective__logit_std": 0.5}),
    ({}, {"objective__timesteps": "cubic"}),
    ({}, {"objective__timestep_min": 600}),
    ({}, {"objective__timestep_max": 400}),
    ({}, {"objective__caption_dropout": 1.0}),
    ({}, {"prior__images": "live", "prior__uses": 1}),
    ({"prior__images": "live", "prior__count": 2}, {"prior__uses": 1}),
    ({}, {"prior__images": "subject", "prior__target": "base"}),
    ({}, {"prior__target": "base"}),
    ({}, {"prior__weight_end": 0.1}),
    ({}, {"prior__caption_dropout": 1.0}),
    ({}, {"subject__weight": 0.5}),
    ({}, {"data__aspect": "buckets"}),
    (
        {"data__aspect": "buckets", "data__resolution": 64},
        {"data__enlarge": "true"},
    ),
    ({}, {"data__crop": "random"}),
    ({}, {"data__mirror": "true"}),
    ({}, {"data__resolution": 40}),
    ({}, {"subject__prompt": "[V] on the beach"}),
    ({}, {"subject__identifier": "zwx"}),
    ({}, {"prior__weight": 0.1}),
    ({}, {"prior__seed": 3}),
    ({}, {"prior__scale": 2}),
    ({}, {"prior__steps": 3}),
    ({}, {"prior__sampler": "euler"}),
    ({}, {"prior": "null"}),
]


def name_of(settings: Mapping[str, object]) -> str:
    words = "-".join(f"{key}-{value}" for key, value in settings.items()) or "plain"
    return "".join(letter for letter in words if letter.isalnum() or letter in "-_")[:120]


@pytest.fixture(scope="module")
def trained(places: dict[str, Workspace]) -> Callable[[dict[str, object]], Path]:
    """Train with these settings, once."""
    runs: dict[str, Path] = {}

    def train(settings: dict[str, object]) -> Path:
        name = name_of(settings)
        if name not in runs:
            runs[name] = places["eps"].train(f"with-{name}", **settings)
        return runs[name]

    return train


@pytest.mark.parametrize(("before", "change"), CHANGES, ids=str)
def test_options_that_change_the_result(
    trained: Callable[[dict[str, object]], Path],
    before: dict[str, object],
    change: dict[str, object],
) -> None:
    without, other = trained(before), trained({**before, **change})
    part = "text_encoder" if any("text_encoder" in key for key in change) else "unet"
    assert difference(without, other, part=part) > 1e-6


def test_another_vae_changes_the_result(
    trained: Callable[[dict[str, object]], Path], places: dict[str, Workspace]
) -> None:
    """Also where the latents of the base's own are in the cache."""
    other = trained({"model__vae": places["eps"].folder / "vae"})
    assert difference(trained({}), other) > 1e-6


def test_masks_change_the_result(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> None:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    place.draw_masks()
    off, low, none = (
        place.train(f"outside{n}", objective__mask_outside=value)
        for n, value in enumerate(("null", 0.5, 0.0))
    )
    assert difference(off, low) > 1e-6
    assert difference(low, none) > 1e-6


def test_further_subjects_change_the_result_each_with_its_weight(
    trained: Callable[[dict[str, object]], Path], places: dict[str, Workspace]
) -> None:
    second = {"pictures": str(places["eps"].pictures), "identifier": "dog", "class_noun": "dog"}
    one = trained({})
    two, light = (
        trained({"subjects": json.dumps([{**second, "weight": weight}])}) for weight in (1.0, 0.1)
    )
    assert difference(one, two) > 1e-6
    assert difference(two, light) > 1e-6


def test_an_average_is_kept_beside_the_weights_and_changes_none(
    trained: Callable[[dict[str, object]], Path], places: dict[str, Workspace]
) -> None:
    plain = trained({})
    averages = []
    for settings in (
        {"ema__schedule": "constant", "ema__decay": 0.5},
        {"ema__schedule": "power"},
        {"ema__schedule": "power", "ema__power": 0.1},
        {"ema__schedule": "constant", "ema__decay": 0.9},
    ):
        run = trained(dict(settings))
        assert difference(plain, run) == 0
        average = weights(run, 2, "unet.ema")
        assert average.keys() == weights(run, 2).keys()
        averages.append(torch.cat([tensor.flatten() for tensor in average.values()]))
    for one, other in itertools.combinations([*averages], 2):
        assert not torch.equal(one, other)
    # 0.25 x start + 0.25 x step 1 + 0.5 x step 2: a constant decay of 0.5, written out
    start = load_file(places["eps"].base / "unet/diffusion_pytorch_model.safetensors")
    first, second = weights(plain, 1), weights(plain, 2)
    expected = [0.25 * start[key] + 0.25 * first[key] + 0.5 * second[key] for key in first]
    torch.testing.assert_close(averages[0], torch.cat([tensor.flatten() for tensor in expected]))
