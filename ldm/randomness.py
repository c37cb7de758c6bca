"""Randomness as a function, not a state.

Every random draw of the project (which pictures, crop, posterior sample, noise, timestep, caption,
class images, ...) comes from `generator(seed, purpose, step, index)`. So a resumed run needs no
random state, a run on two processes draws what it draws on one, and drawing something extra in the
middle of training (a sample grid) changes nothing.

`purpose` separates draws that share a step and an index. `step` is the optimizer step, or whatever
counts repetitions; `index` is the sample's place in the *global* batch, or whatever counts samples.
"""

import zlib

import numpy as np
import torch


def seed_of(seed: int, purpose: str, step: int = 0, index: int = 0) -> int:
    """The 64-bit seed, 0 <= s < 2**64, of one draw: NumPy's `SeedSequence` does the mixing.

    The same on every machine, process and version of NumPy (`SeedSequence` is a fixed algorithm).
    Raises ValueError where seed, step or index is negative.
    """
    if min(seed, step, index) < 0:
        raise ValueError(
            f"seed, step and index count from 0, got seed={seed}, step={step}, index={index}"
        )
    words = [seed, zlib.crc32(purpose.encode()), step, index]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def generator(seed: int, purpose: str, step: int = 0, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for one draw; `torch`'s global state is neither read nor changed.

    Draw on the CPU and move the result: numbers then do not depend on the device. (PyTorch's CPU
    generator starts from the low 32 bits; two draws of a run rarely share them, and harmlessly.)
    """
    return torch.Generator("cpu").manual_seed(seed_of(seed, purpose, step, index))
