"""Both implementations of attention are the same function."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.models.attention import SHORT, choose_attention
from ldm.models.base import load_base


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_both_give_the_same_prediction(tiny_base_folder: Callable[[str], Path], kind: str) -> None:
    unet = load_base(tiny_base_folder(kind)).unet
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8, generator=noise), torch.tensor([10, 900])
    text = torch.randn(2, 32, 16, generator=noise)
    predictions, processors = [], []
    for tokens in (SHORT, SHORT + 1):
        choose_attention(unet, torch.device("cpu"), tokens)
        processors.append({type(p).__name__ for p in unet.attn_processors.values()})
        with torch.no_grad():
            predictions.append(unet(*inputs, encoder_hidden_states=text).sample)
    assert processors == [{"AttnProcessor"}, {"AttnProcessor2_0"}]
    torch.testing.assert_close(*predictions, rtol=1e-5, atol=1e-5)
