"""Runs that train an adapter: from the command line to files that others open."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import main
from ldm.checkpoint.snapshots import load_snapshot
from ldm.config import Evaluation
from ldm.errors import UserError
from ldm.models.adapters import merged
from ldm.models.adapters.settings import Kind
from ldm.models.base import BaseModel, load_base
from ldm.models.quantised import QuantisedLinear
from ldm.run.folder import read_config
from ldm.run.measure.one_run import Measuring
from ldm.run.measure.results import export_chosen
from ldm.run.memory import prediction
from ldm.run.prepare import prepare
from ldm.run.source import source_of_run
from ldm.run.trained import load_trained
from scripts import export, sample
from tests.models.test_adapters import predict
from tests.workspace import Workspace, difference, evaluated, weights

TinyFolder = Callable[[str], Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: TinyFolder) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("adapters"), tiny_base_folder("eps"))


HALF: dict[str, object] = {
    "adapter__frozen": "half",
    "training__precision": "bf16-mixed",
}


def test_the_base_may_be_kept_in_half_precision(place: Workspace) -> None:
    """Its weights are rounded; the adapter's are not, and a run goes on bit for bit."""
    settings = {**HALF, "adapter__kind": "dora", "adapter__rank": 4, "adapter__conv": "true"}
    straight = place.train("half", **settings)
    run = place.train("half-resumed", training__steps=1, **settings)
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    assert difference(straight, run) == 0
    assert all(tensor.dtype == torch.float32 for tensor in weights(run, 2).values())
    ready = prepare(read_config(run))
    own = {id(p) for adapter in ready.adapters.values() for p in adapter.parameters()}
    kept = {p.dtype for p in ready.base.unet.parameters() if id(p) not in own}
    assert kept == {torch.bfloat16} and ready.base.vae.dtype == torch.float32
    whole = place.train("whole", **{**settings, "adapter__frozen": "full"})
    assert 0 < difference(straight, whole) < 1e-2


@pytest.mark.parametrize("kind", get_args(Kind))
def test_what_is_measured_of_a_base_in_half_precision_is_whole(place: Workspace, kind: str) -> None:
    """Of every kind, whose layers multiply with the base's weights each in its own way."""
    run = place.train(f"half-{kind}", adapter__kind=kind, adapter__rank=4, **HALF)
    config = read_config(run)
    config.evaluation = Evaluation(oracle=None)
    with Measuring(config, prepare(config), run).loaded(2, torch.device("cpu")) as loaded:
        assert {p.dtype for p in loaded.model.unet.parameters()} == {torch.float32}
        with torch.no_grad():
            wanted = predict(load_trained(run, "last").base)
            torch.testing.assert_close(predict(loaded.model), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "bits"), [("dora", "nf4"), ("lokr", "int8")])
def test_the_base_may_be_quantised(place: Workspace, kind: str, bits: str) -> None:
    """Once: a run goes on bit for bit. What it learnt is measured, and exported, in the whole
    base."""
    few = {"adapter__frozen": bits, "training__precision": "bf16-mixed", "samples__every": 2}
    settings = {"adapter__kind": kind, "adapter__rank": 4, "adapter__conv": "true", **few}
    own = dict(evaluated(place.folder)) if bits == "nf4" else {}
    straight = place.train(f"few-{bits}", **{**settings, **own})
    run = place.train(f"few-resumed-{bits}", training__steps=1, **settings)
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    assert difference(straight, run) == 0
    assert all("base_layer" not in key for key in weights(run, 2))
    config = read_config(run)
    ready = prepare(config)
    linear = [m for m in ready.base.unet.modules() if isinstance(m, QuantisedLinear)]
    assert linear and {layer.bits for layer in linear} == {bits}
    assert ready.base.unet.conv_norm_out.weight.dtype == torch.bfloat16
    config.evaluation = Evaluation(oracle=None)
    with Measuring(config, ready, run).loaded(2, torch.device("cpu")) as loaded:
        assert not any(isinstance(m, QuantisedLinear) for m in loaded.model.unet.modules())
        with torch.no_grad():
            wanted = predict(load_trained(run, "last").base)
            torch.testing.assert_close(predict(loaded.model), wanted, rtol=0, atol=1e-5)
    need = prediction.memory_bytes(config, ready)
    config.adapter.frozen = "half"  # type: ignore[union-attr]
    assert need < prediction.memory_bytes(config, prepare(config))
    half = place.train(f"not-few-{bits}", **{**settings, "adapter__frozen": "half"})
    assert difference(straight, half) > 0
    assert len(list((place.folder / "prior").iterdir())) >= 2, "each draws its own class images"


@pytest.mark.parametrize("frozen", ["half", "int8", "nf4"])
def test_half_precision_that_is_not_computed_with_is_refused(
    place: Workspace, capsys: pytest.CaptureFixture[str], frozen: str
) -> None:
    words = {"adapter__frozen": frozen, "adapter__rank": 2}
    assert place.main(**words) == 2
    assert f"adapter.frozen={frozen}: " in capsys.readouterr().err


def test_other_adapter_settings_are_refused_on_resume(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("refused", training__steps=1, adapter__rank=2)
    for word in ("adapter.rank=4", "adapter=null", "adapter.targets=[to_k]"):
        assert main.main(["--resume", str(run), "training.steps=2", word]) == 2
        assert "adapter." in capsys.readouterr().err


def test_a_target_that_matches_nothing_stops_the_run(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"adapter__targets": "[up_blocks.0.atentions]"}
    assert place.main("--name", "nowhere", "--dry-run", **words) == 2
    assert "near are up_blocks.0.attentions" in capsys.readouterr().err
    assert not list(place.logs.glob("*_nowhere"))


def test_the_export_is_merged_and_has_the_adapter_beside_it(place: Workspace) -> None:
    settings = {"adapter__kind": "dora", "adapter__rank": 4, "training__learning_rate": 0.05}
    run = place.train("exported", **settings)
    config = read_config(run)
    config.evaluation = Evaluation(oracle=None)
    ready = prepare(config)
    measuring = Measuring(config, ready, run)
    result = {
        "chosen": 2,
        "subject": {"identifier": "sks", "class_noun": "robot", "training": ["0.png"]},
        "base_fingerprint": ready.base.fingerprint,
        "snapshots": {"2": {}},
    }
    export_chosen(run, result, lambda step: measuring.loaded(step, torch.device("cpu")))
    with torch.no_grad():
        wanted = predict(load_trained(run, "last").base)
        assert (wanted - predict(load_base(place.base))).abs().max() > 1e-3
        torch.testing.assert_close(predict(load_base(run / "export")), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(predict(ready.base), wanted, rtol=0, atol=0)  # unmerged
    names = {path.name for path in (run / "export" / "adapter").iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "kohya.safetensors"}


def test_a_lora_of_a_full_fine_tune(
    place: Workspace, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = place.train("full", training__learning_rate=1e-2)
    words = ["--run", str(run), "--snapshot", "last", "--format"]
    assert export.main([*words, "kohya"]) == 2
    assert "trained all weights and has no adapter; give --rank N" in capsys.readouterr().err
    with caplog.at_level("INFO", logger="ldm"):
        assert export.main([*words, "kohya", "--rank", "3", "--dtype", "fp16"]) == 0
    assert "extracted at rank 3: " in caplog.text
    (file,) = (run / "export-kohya").iterdir()
    tensors = load_file(file)
    assert tensors["lora_unet_conv_in.lora_down.weight"].shape == (3, 4, 3, 3)
    assert export.main([*words, "embedding"]) == 0
    assert load_file(run / "export-embedding" / "sks.safetensors")["<sks>"].shape == (1, 16)


def test_no_embedding_where_none_was_trained(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("no-embedding", training__steps=1, adapter__rank=2)
    assert export.main(["--run", str(run), "--snapshot", "last", "--format", "embedding"]) == 2
    assert "left the embedding of 'sks' as the base has it" in capsys.readouterr().err


def test_the_identifiers_row_is_trained_first(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"adapter__rank": 2, "training__pivotal": 0.5}
    straight = place.train("row", training__steps=4, snapshots__every=2, **settings)
    key = "embeddings.token_embedding.rows"
    first, last = (weights(straight, step, "text_encoder") for step in (2, 4))
    assert first[key].shape == (1, 16) and not torch.equal(first[key], last[key])
    start = load_base(place.base)
    (token,) = start.tokenizer("sks", add_special_tokens=False).input_ids
    assert not torch.equal(start.text_encoder.get_input_embeddings().weight[token], first[key][0])
    zeros = [name for name in first if "lora_B" in name]
    assert zeros and not any(first[name].any() for name in zeros), "nothing else moved yet"
    assert all(last[name].any() for name in zeros)
    run = place.train("row-resumed", training__steps=1, **settings)
    assert main.main(["--resume", str(run), "training.steps=2"]) == 0
    words = ["--run", str(straight), "--snapshot", "last", "--format"]
    assert export.main([*words, "embedding"]) == 0
    file = load_file(straight / "export-embedding" / "sks.safetensors")
    assert torch.equal(file["<sks>"], last[key])
    assert export.main([*words, "kohya"]) == 0
    assert "write it with --format embedding" in caplog.text
    alone = place.train("row-alone", model__train_text_encoder="false", **settings)
    assert weights(alone, 2, "text_encoder").keys() == {key}
    assert export.main(["--run", str(alone), "--snapshot", "last", "--format", "lora"]) == 0


def test_grids_show_the_adapter(place: Workspace) -> None:
    run = place.train("grid", adapter__rank=4, samples__every=2, training__learning_rate=0.1)
    first, last = (
        np.asarray(Image.open(run / "samples" / f"step-{step:06d}.png")).astype(int)
        for step in (0, 2)
    )
    assert abs(first - last).max() > 1


def test_ranks_by_timestep_are_the_runs_alone(
    place: Workspace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled and measured with them; an export has the whole rank, and says so."""
    settings = {"adapter__rank": 4, "adapter__timestep_rank": 1, "training__learning_rate": 0.05}
    run = place.train("by-timestep", **settings)
    words = ["--run", str(run), "--snapshot", "last", "--format"]
    assert export.main([*words, "diffusers"]) == 0
    said = "adapter.timestep_rank=1 is kept by the run alone"
    assert said in caplog.text
    assert "1 of the adapter's 4 components" in (run / "export-diffusers/README.md").read_text()
    whole = load_base(run / "export-diffusers")
    trained = load_trained(run, "last")
    with torch.no_grad():
        wanted = predict(trained.base)
        assert (predict(whole) - wanted).abs().max() > 1e-3
        with merged(trained.adapters):
            torch.testing.assert_close(predict(whole), predict(trained.base), rtol=0, atol=1e-5)
    predictions = [predict(source_of_run(run, "last", False, torch.float32).base)]
    with pytest.raises(UserError, match="no adapter that can be weighted"):
        source_of_run(run, "last", False, torch.float32, share=0.5)
    config = read_config(run)
    config.evaluation = Evaluation(oracle=None)
    ready = prepare(config)
    measuring = Measuring(config, ready, run)

    class Looker:
        def base(self) -> None: ...

        def measure(self, name: str, model: BaseModel, *_: str) -> None:
            predictions.append(predict(model))

    monkeypatch.setattr(measuring, "_evaluator_on", lambda device: Looker())
    told = load_snapshot(run / "snapshots" / "step-000002", ready.networks)
    measuring._measure(2, told, torch.device("cpu"))
    assert len(predictions) == 2
    for found in predictions:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_pictures_of_a_lora_file_are_those_of_its_run(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("file", adapter__rank=4, adapter__alpha=2.0, training__learning_rate=0.05)
    assert export.main(["--run", str(run), "--snapshot", "last", "--format", "kohya"]) == 0
    (file,) = (run / "export-kohya").iterdir()
    words = ["--prompt", "a photo of sks robot", "--n", "1", "--device", "cpu", "--scale", "3"]
    words += ["--steps", "2", "--sampler", "ddim", "--out"]
    model = ["--model", str(place.base)]
    pictures = []
    for name, source in {
        "run": ["--run", str(run), "--snapshot", "last"],
        "file": [*model, "--lora", str(file)],
        "half": [*model, "--lora", f"{file}:0.5"],
        "none": model,
    }.items():
        assert sample.main([*source, *words, str(run / name)]) == 0
        (path,) = (run / name).glob("0*.png")
        pictures.append(np.asarray(Image.open(path)).astype(int))
    of_run, of_file, half, none = pictures
    assert abs(of_run - of_file).max() <= 1
    assert abs(of_run - half).max() > 1 and abs(half - none).max() > 1
    with pytest.raises(SystemExit):
        sample.main(["--run", str(run), "--lora", str(file), *words, "x"])
    assert "--lora belongs to --model" in capsys.readouterr().err
