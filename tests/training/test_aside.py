"""What training does not call lies on the CPU."""

from typing import Any

import pytest
import torch
from torch import nn

from ldm.training import Aside


class Elsewhere(nn.Linear):
    """As if on an accelerator, until it is moved."""

    def __init__(self) -> None:
        super().__init__(2, 2, device="meta")
        self.moves: list[str] = []

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.moves.append("moved")
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))
        return self


def test_what_is_on_the_device_is_moved_before_each_batch(caplog: pytest.LogCaptureFixture) -> None:
    there, here = Elsewhere(), nn.Linear(2, 2)
    weight = here.weight
    aside = Aside({"vae": there, "text_encoder": here})
    trainer: Any = None
    with caplog.at_level("INFO"):
        aside.on_train_batch_start(trainer)
        aside.on_train_batch_start(trainer)
    assert there.moves == ["moved"] and there.weight.device.type == "cpu"
    assert here.weight is weight
    assert caplog.messages == ["on the CPU while training: vae"]
    there.weight = nn.Parameter(torch.zeros(2, 2, device="meta"))  # a grid was drawn
    aside.on_train_batch_start(trainer)
    assert len(there.moves) == 2 and len(caplog.messages) == 1
