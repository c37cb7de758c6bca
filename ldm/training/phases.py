"""Which parts are trained at which step: everything, the identifier's rows alone, no text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.adapters.rows import TokenRows

TEXT_ENCODER = "text_encoder"  # a group: of the text encoders together
EMBEDDING = "embedding"  # the text encoders' token embeddings, as a group of its own
ENCODERS = ("text_encoder", "text_encoder_2")  # modules


@dataclass(frozen=True)
class Phases:
    """Steps 0 .. pivotal - 1 train the embedding rows `tokens` alone, the others what is trained.

    From step `text_encoder_stop` on the text encoders stay as they are (None: never). tokens: of
    each text encoder the ids of the identifiers' tokens. A start with the embedding alone is
    textual inversion (arXiv 2208.01618); fine-tuning around what it found is pivotal tuning
    (arXiv 2106.05744).
    """

    pivotal: int = 0
    text_encoder_stop: int | None = None
    tokens: Sequence[Sequence[int]] = ()

    @classmethod
    def of_shares(
        cls, steps: int, pivotal: float, text_encoder_stop: float, tokens: Sequence[Sequence[int]]
    ) -> "Phases":
        """From shares of the steps, 0 to 1; any share above 0 is at least one step."""

        def steps_of(share: float) -> int:
            return ceil(round(share * steps, 6))  # 0.07 * 100 is 7.000000000000001

        stop = None if text_encoder_stop >= 1 else steps_of(text_encoder_stop)
        return cls(steps_of(pivotal), stop, tuple(map(tuple, tokens)))

    @property
    def change(self) -> bool:
        """Whether what is trained changes in the run (DDP has to look for unused parameters)."""
        return self.pivotal > 0 or self.text_encoder_stop is not None

    def trains(self, group: str, step: int) -> bool:
        """Whether the group "unet", "text_encoder" or "embedding" is trained in step 0, 1, ..."""
        if step < self.pivotal:
            return group == EMBEDDING
        stopped = self.text_encoder_stop is not None and step >= self.text_encoder_stop
        return not (stopped and group in (TEXT_ENCODER, EMBEDDING))


THROUGHOUT = Phases()  # everything is trained from the first step to the last


def embeddings_of(modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """What of each text encoder's token embedding can be trained: all of it, [vocabulary, D], or
    some `TokenRows`."""
    embeddings = _input_embeddings(modules)
    return [each.rows if isinstance(each, TokenRows) else each.weight for each in embeddings]


def places_of(
    modules: Mapping[str, nn.Module], tokens: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """Where in each of `embeddings_of` the rows of its text encoder's `tokens` are."""
    held = [getattr(embedding, "tokens", None) for embedding in _input_embeddings(modules)]
    return [
        [rows.index(token) for token in own] if rows else own
        for rows, own in zip(held, tokens, strict=True)
    ]


def _input_embeddings(modules: Mapping[str, nn.Module]) -> list[Any]:
    encoders: list[Any] = [modules[name] for name in ENCODERS if name in modules]
    return [encoder.get_input_embeddings() for encoder in encoders]


def groups_of(
    modules: Mapping[str, nn.Module], separate_embedding: bool
) -> dict[str, list[nn.Parameter]]:
    """What of `modules` requires gradients: "unet", "text_encoder" (of SDXL both), and apart from
    it, if asked for, "embedding"."""
    apart = embeddings_of(modules) if separate_embedding else []
    groups: dict[str, list[nn.Parameter]] = {}
    for name, module in modules.items():
        own = [p for p in module.parameters() if p.requires_grad and all(p is not e for e in apart)]
        if own:
            groups.setdefault(TEXT_ENCODER if name in ENCODERS else name, []).extend(own)
    if separate_embedding:
        groups[EMBEDDING] = apart
    return groups


def annealed(first: float, last: float | None, step: int, steps: int) -> float:
    """A weight in step 0, 1, ... of `steps`: straight from `first` to `last` (None: it stays)."""
    if last is None or steps < 2:
        return first
    return first + (last - first) * min(1.0, step / (steps - 1))


@torch.no_grad()
def keep_rows_only(gradient: Tensor, rows: Sequence[int]) -> None:
    """Set every row of a gradient [vocabulary, D] to zero but `rows`."""
    kept = gradient[list(rows)].clone()
    gradient.zero_()
    gradient[list(rows)] = kept


@torch.no_grad()
def restore_rows(weight: Tensor, before: Tensor, rows: Sequence[int]) -> None:
    """Set every row of a weight [vocabulary, D] to what it was before, but `rows`."""
    kept = weight[list(rows)].clone()
    weight.copy_(before)
    weight[list(rows)] = kept
