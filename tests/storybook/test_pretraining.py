"""The pretraining stages at toy size: they learn; an interrupted one ends where it would have."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import nn

import scripts.pretrain
from ldm.storybook import full_caption, random_scene
from ldm.storybook.pretraining.loop import Loop, LoopSettings, rate_at
from ldm.storybook.pretraining.pool import draw_pool
from ldm.storybook.pretraining.settings import PretrainSettings
from ldm.storybook.pretraining.tokenizer import IDENTIFIERS, train_tokenizer
from ldm.storybook.pretraining.vae import new_vae, picture_batch, vae_loss

RECIPE = Path("configs/pretrain/storybook.yaml")


def fit_line(state: Path, steps: int, stop_at: int | None = None) -> Loop:
    """Fit y = 2 x; `stop_at` breaks the process off just after that step was saved."""
    torch.manual_seed(0)
    loop = Loop(nn.Linear(1, 1), LoopSettings(steps, 0.1, warmup=2, save_every=3), state)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return (loop.module(x) - 2 * x).square().mean(), {}

    def after(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    loop.run(loss_at, after)
    return loop


def test_an_interrupted_loop_ends_bit_for_bit_where_it_would_have(tmp_path: Path) -> None:
    whole = fit_line(tmp_path / "whole.pt", 20)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "cut.pt", 20, stop_at=8)
    resumed = fit_line(tmp_path / "cut.pt", 20)
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name])
        assert torch.equal(whole.module.state_dict()[name], resumed.module.state_dict()[name])


def test_the_learning_rate_rises_holds_and_falls() -> None:
    settings = LoopSettings(1000, 1.0, warmup=100, cooldown=0.5)
    assert rate_at(0, settings) == pytest.approx(0.01)
    assert rate_at(300, settings) == 1.0
    assert rate_at(750, settings) == pytest.approx(0.5)
    assert rate_at(1000, settings) == pytest.approx(0.0)


def test_tokenizer_is_byte_complete_and_knows_the_world_by_words() -> None:
    rng = np.random.default_rng(1)
    captions = [full_caption(random_scene(rng, held_out=None)) for _ in range(3000)]
    tokenizer = train_tokenizer(captions, length=32, vocabulary=800)
    for word in {word for caption in captions for word in caption.split()} | set(IDENTIFIERS):
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert not set(IDENTIFIERS) & {word for caption in captions for word in caption.split()}
    strange = "žluťoučký 狗 🦊 <x> 3.14"
    ids = tokenizer(strange, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert "".join(tokenizer.decode(ids).split()) == "".join(strange.split())


def test_pool_is_the_same_pool_again_and_has_no_held_out_combination() -> None:
    from ldm.storybook import held_out

    first, again = draw_pool(40, seed=5), draw_pool(40, seed=5)
    assert np.array_equal(first.pictures, again.pictures)
    assert first.captions == again.captions
    assert not any(held_out(s.noun, s.colour, s.setting) for s in first.scenes)


def test_vae_learns() -> None:
    pool = draw_pool(40, seed=6, subject_share=0.5)
    torch.manual_seed(0)
    vae = new_vae([8, 8, 16], 4).train()
    optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
    batch = picture_batch(pool, 16, np.random.default_rng(0))
    losses = []
    for _ in range(25):
        loss, numbers = vae_loss(vae, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(numbers["l1"])
    assert losses[-1] < 0.8 * losses[0]


TOY = {
    "pool": {"vae": 20, "diffusion": 20, "oracle_families": 4},
    "vae": {"channels": [8, 8, 16], "batch": 2, "loop": {"steps": 2}, "decoder_loop": {"steps": 2}},
    "diffusion": {
        "channels": [32, 32],
        "text_width": 32,
        "text_layers": 1,
        "batch": 2,
        "half_trained_at": [1],
        "half_trained_count": 2,
        "loop": {"steps": 2},
    },
    "oracle": {
        "channels": [8, 8, 8, 8],
        "features": 16,
        "families": 2,
        "settling": 16,
        "loop": {"steps": 2},
    },
    "recognition": {"families": 4, "softened_families": 2, "batch": 2, "loop": {"steps": 2}},
    "identity": {"subjects": 8},
    "score": {"prompts": 4, "renders": 8, "pairs": 4, "subjects": 8, "class_images": 1},
}


def pretrain(folder: Path, *overrides: str) -> int:
    """Every stage of the shipped recipe at toy size."""
    toy = folder / "toy.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(RECIPE), TOY), toy)
    places = [f"work={folder}/work", f"base={folder}/base", f"oracle_folder={folder}/oracle"]
    return scripts.pretrain.main(["--config", str(toy), *places, *overrides])


def test_every_stage_and_going_on_from_the_result(tmp_path: Path) -> None:
    assert pretrain(tmp_path) == 0
    scores = json.loads((tmp_path / "base" / "scores.json").read_text())
    assert {"class", "colour", "setting", "accessory", "none of these"} == scores["base"].keys()
    assert (tmp_path / "base" / "samples.png").is_file()
    weights = {
        part: load_file(next((tmp_path / "base" / part).glob("*.safetensors")))
        for part in ("vae", "unet", "text_encoder")
    }
    assert all(v.dtype == torch.float16 for part in weights.values() for v in part.values())

    rates = json.loads((tmp_path / "oracle" / "oracle.json").read_text())["rates"]
    assert rates.keys() == {"threshold", *scores["identity"]}
    assert {"own", "same design, by training pictures", "base's class images"} <= rates.keys()
    oracle = [path.read_bytes() for path in sorted((tmp_path / "oracle").iterdir())]
    start = f"start_from={tmp_path}/base"
    next_one = [start, f"work={tmp_path}/next", f"base={tmp_path}/better"]
    assert pretrain(tmp_path, *next_one, "diffusion.loop.learning_rate=0") == 0
    for part, before in weights.items():
        after = load_file(next((tmp_path / "better" / part).glob("*.safetensors")))
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-6)
    assert [path.read_bytes() for path in sorted((tmp_path / "oracle").iterdir())] == oracle


def test_a_wrong_key_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(tmp_path, "diffusion.loop.step=3") == 2
    assert "step" in capsys.readouterr().err
    assert pretrain(tmp_path, "--stage", "recognition", "identity.rivals=[strangers]") == 2
    assert "no 'strangers'; there are world objects" in capsys.readouterr().err
    assert scripts.pretrain.main(["--config", str(tmp_path / "absent.yaml")]) == 2


def test_the_shipped_recipe_is_valid() -> None:
    merged = OmegaConf.merge(OmegaConf.structured(PretrainSettings), OmegaConf.load(RECIPE))
    settings = cast(PretrainSettings, OmegaConf.to_object(merged))
    assert settings.diffusion.loop.steps > 1000
    for key in flat(OmegaConf.create(asdict(PretrainSettings()))):
        leaf = OmegaConf.select(OmegaConf.load(RECIPE), key, default=ABSENT)
        assert leaf is not ABSENT or ".loop." in key or ".decoder_loop." in key, key


ABSENT = object()


def flat(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys of every leaf."""
    for name, value in node.items():
        key = str(name)
        if isinstance(value, DictConfig):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
