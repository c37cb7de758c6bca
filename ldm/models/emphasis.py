"""Prompts whose words count for more or less, and that are read in sections."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Fragment = tuple[str, float]  # words, and what they count


@dataclass(frozen=True)
class Emphasised:
    """Sections of fragments. Each section begins in a window of the text encoder of its own."""

    sections: tuple[tuple[Fragment, ...], ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return " ".join("".join(text for text, _ in section) for section in self.sections)


Prompt = str | Emphasised


@dataclass(frozen=True)
class Window:
    """What one forward pass of a text encoder reads of a prompt: as many weights as tokens."""

    tokens: list[int]
    weights: list[float]


def windows_of(
    tokenizer: "CLIPTokenizer", prompt: Prompt, chunks: int
) -> tuple[list[Window], list[int]]:
    """A prompt's windows, and the tokens that do not fit.

    A section fills as many windows as it needs, `chunks` at most; a prompt has `chunks` at least,
    empty ones at the end. Plain text is one section.
    """
    length = tokenizer.model_max_length - 2  # start and end
    sections = (((prompt, 1.0),),) if isinstance(prompt, str) else prompt.sections
    windows: list[Window] = []
    lost: list[int] = []
    for section in sections:
        tokens, weights = _tokens_of(tokenizer, section)
        count = min(chunks, max(1, math.ceil(len(tokens) / length)))
        for start in range(0, count * length, length):
            part = slice(start, start + length)
            windows.append(Window(tokens[part], weights[part]))
        lost += tokens[count * length :]
    return [*windows, *[Window([], [])] * (chunks - len(windows))], lost


def _tokens_of(
    tokenizer: "CLIPTokenizer", section: Sequence[Fragment]
) -> tuple[list[int], list[float]]:
    texts = [text for text, _ in section]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids  # no length warning
    tokens = list(itertools.chain(*ids))
    weights = [weight for own, (_, weight) in zip(ids, section, strict=True) for _ in own]
    return tokens, weights


def emphasise(states: Tensor, empty: Tensor, windows: Sequence[Window]) -> Tensor:
    """Move the states of tokens away from those of an empty prompt, or towards them.

    states [N, L, D] of N windows, empty [1, L, D] -> [N, L, D]: empty + w (states - empty) where a
    token counts w; what has no weight (start, end, padding) stays as it is. So in ComfyUI
    (https://github.com/comfyanonymous/ComfyUI, comfy/sd1_clip.py, encode_token_weights). A1111
    multiplies with w and then restores the mean over all; that mean is near 0 in some encoders
    (-0.015, beside a deviation of 0.44, in data/storybook-sd), and the factor then anything.
    """
    weights = torch.ones(states.shape[:2], device=states.device, dtype=states.dtype)
    for row, window in enumerate(windows):
        own = torch.tensor(window.weights, device=states.device, dtype=states.dtype)
        weights[row, 1 : 1 + len(own)] = own  # after the start token
    moved = empty + weights[..., None] * (states - empty)
    return states.where(weights[..., None] == 1, moved)  # bit for bit
