"""Some rows of a token embedding, trained while the others stay as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TokenRows(nn.Module):
    """Takes the place of a token embedding [vocabulary, D]; `rows` [n, D] are those of `tokens`."""

    def __init__(self, embedding: nn.Embedding, tokens: Sequence[int]) -> None:
        super().__init__()
        self.embedding, self.tokens = embedding, list(tokens)
        self.rows = nn.Parameter(embedding.weight.detach()[self.tokens].float())

    def forward(self, ids: Tensor) -> Tensor:
        """[..., L], int -> [..., L, D]."""
        states: Tensor = self.embedding(ids)
        for row, token in zip(self.rows, self.tokens, strict=True):
            states = torch.where((ids == token)[..., None], row.to(states.dtype), states)
        return states

    def whole(self) -> Tensor:
        """The embedding with the rows in it, a copy."""
        weight = self.embedding.weight.detach().clone()
        weight[self.tokens] = self.rows.detach().to(weight.dtype)
        return weight
