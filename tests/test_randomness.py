"""Every draw is a function of (seed, purpose, step, index)."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from ldm.randomness import generator, seed_of


def test_seed_is_numpys_seed_sequence_of_the_four_parts():
    words = [7, zlib.crc32(b"noise"), 300, 5]
    expected = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    assert seed_of(7, "noise", 300, 5) == int(expected)


def test_seed_is_pinned_for_ever():
    """Runs are repeatable across versions of this project only while this number stands."""
    assert seed_of(0, "noise") == 16744308528744396127


def test_every_part_matters():
    base = (1, "noise", 2, 3)
    others = [(2, "noise", 2, 3), (1, "crop", 2, 3), (1, "noise", 3, 3), (1, "noise", 2, 4)]
    seeds = {seed_of(*parts) for parts in [base, *others]}
    assert len(seeds) == 5
    assert seed_of(1, "noise", 2, 3) != seed_of(1, "noise", 3, 2)


def test_many_draws_are_distinct_and_look_independent():
    draws = torch.stack(
        [
            torch.randn(64, generator=generator(0, "noise", s, i))
            for s in range(40)
            for i in range(8)
        ]
    )
    assert len(draws.unique(dim=0)) == 320
    correlation = torch.corrcoef(draws).fill_diagonal_(0).abs().max()
    assert correlation < 0.7  # 64 numbers each, 51,040 pairs: 5.6 deviations
    assert abs(draws.mean()) < 0.03 and abs(draws.std() - 1) < 0.03


def test_generator_repeats_and_leaves_global_state_alone():
    before = torch.get_rng_state()
    first = torch.randn(5, generator=generator(3, "crop", 1))
    assert torch.equal(first, torch.randn(5, generator=generator(3, "crop", 1)))
    assert torch.equal(before, torch.get_rng_state())


def test_same_in_another_process():
    code = "from ldm.randomness import seed_of; print(seed_of(9, 'caption', 4, 2))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == seed_of(9, "caption", 4, 2)


@pytest.mark.parametrize("parts", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_negative_numbers_are_refused(parts):
    seed, step, index = parts
    with pytest.raises(ValueError, match=f"seed={seed}, step={step}, index={index}"):
        generator(seed, "noise", step, index)
