"""The pretraining stages at toy size: they learn; an interrupted one ends where it would have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm.storybook import full_caption, random_scene
from ldm.storybook.pretraining.loop import Loop, LoopSettings, rate_at
from ldm.storybook.pretraining.pool import draw_pool
from ldm.storybook.pretraining.tokenizer import IDENTIFIERS, train_tokenizer
from ldm.storybook.pretraining.vae import new_vae, picture_batch, vae_loss


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
