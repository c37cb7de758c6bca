"""Weights of words in what a UNet reads, in each kind of model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.models.base import BaseModel, load_base
from ldm.models.emphasis import Emphasised, Prompt
from ldm.models.text import Reading, TextEmbedding
from ldm.sampling.generate import batches, generate

TinyFolder = Callable[[str], Path]
KINDS = ["eps", "sdxl"]


@pytest.fixture(scope="module")
def bases(tiny_base_folder: TinyFolder) -> dict[str, BaseModel]:
    return {kind: load_base(tiny_base_folder(kind)) for kind in KINDS}


def encode(base: BaseModel, *prompts: Any) -> TextEmbedding:
    with torch.no_grad():
        return base.text.encode(prompts, "cpu")


def weighted(*fragments: tuple[str, float]) -> Emphasised:
    return Emphasised((fragments,))


@pytest.mark.parametrize("kind", KINDS)
def test_states_move_away_from_the_empty_prompts(bases: dict[str, BaseModel], kind: str) -> None:
    base = replace(bases[kind], zero_empty_prompt=False)
    plain, empty = encode(base, "a dog on the beach", "").states
    made = encode(base, weighted(("a ", 1.0), ("dog", 1.5), (" on the ", 1.0), ("beach", 0.0)))
    expected = plain.clone()
    expected[2] = empty[2] + 1.5 * (plain[2] - empty[2])  # start, a, dog, on, the, beach, end
    expected[5] = empty[5]
    torch.testing.assert_close(made.states[0], expected)
    assert torch.allclose(made.states[0, 6:], plain[6:]) and not torch.equal(plain[5], empty[5])
    if made.pooled is not None:
        pooled = encode(base, "a dog on the beach").pooled
        torch.testing.assert_close(made.pooled, pooled)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", [Reading(), Reading(clip_skip=0, chunks=2)])
def test_weights_of_one_are_none(bases: dict[str, BaseModel], kind: str, reading: Reading) -> None:
    base = replace(bases[kind], reading=reading)
    ones = weighted(("a dog ", 1.0), ("on the beach", 1.0))
    made, plain = encode(base, ones, "snow"), encode(base, "a dog on the beach", "snow")
    assert torch.equal(made.states, plain.states)
    heavy = encode(base, weighted(("a dog ", 1.0), ("on the beach", 1.2)), "snow")
    torch.testing.assert_close(heavy.states[1], plain.states[1])
    assert not torch.allclose(heavy.states[0], plain.states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_sections_have_windows_of_their_own(bases: dict[str, BaseModel], kind: str) -> None:
    base = replace(bases[kind], zero_empty_prompt=False)
    both = Emphasised(((("a dog", 1.0),), (("on the beach", 1.0),)))
    made, alone = encode(base, both, "snow"), encode(base, "a dog", "on the beach", "snow", "")
    assert made.states.shape[1] == 2 * alone.states.shape[1] and base.text.windows(both) == 2
    torch.testing.assert_close(made.states[0], torch.cat([alone.states[0], alone.states[1]]))
    torch.testing.assert_close(made.states[1], torch.cat([alone.states[2], alone.states[3]]))
    if made.pooled is not None and alone.pooled is not None:
        torch.testing.assert_close(made.pooled, alone.pooled[[0, 2]])


def test_a_section_that_is_too_long_is_cut(
    bases: dict[str, BaseModel], caplog: pytest.LogCaptureFixture
) -> None:
    base, long = bases["eps"], " ".join(["dog"] * 30 + ["snow"])
    made = encode(base, Emphasised((((long, 1.0),), (("a beach", 1.0),))))
    assert made.states.shape[1] == 64
    assert "has 33 tokens, 32 fit: 'snow' is not seen" in caplog.text
    two = replace(base, reading=Reading(chunks=2))
    assert two.text.windows(Emphasised((((long, 1.0),), (("a", 1.0),)))) == 3


def test_a_picture_does_not_depend_on_its_neighbours_windows(bases: dict[str, BaseModel]) -> None:
    base = bases["eps"]
    both = Emphasised(((("a dog", 1.0),), (("on the beach", 1.3),)))
    prompts: list[Prompt] = ["snow", both, "a dog"]
    assert batches(base, prompts, "", 5.0, 8) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert batches(base, prompts, both, 5.0, 2) == [slice(0, 2), slice(2, 3)]
    assert batches(base, prompts, both, 1.0, 8) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    made = [np.asarray(p, np.int16) for p in generate(base, prompts, [1, 2, 3], steps=2)]
    for place, prompt in enumerate(prompts):
        (alone,) = generate(base, [prompt], [place + 1], steps=2)
        assert np.abs(np.asarray(alone, np.int16) - made[place]).max() <= 1
