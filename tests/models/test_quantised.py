"""Linear layers in few bits: against what they were made of, and against each other."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm.models.quantised import Bits, QuantisedLinear

# Largest error over the largest weight of what shares a scale. int8: half of 1/127; nf4: half of
# the widest gap between two of its values, arXiv 2305.14314, appendix E.
WORST: dict[Bits, float] = {"int8": 0.5 / 127, "nf4": (1 - 0.6962) / 2}


@pytest.mark.parametrize("bits", WORST)
def test_a_weight_is_near_what_it_was_and_gradients_pass(bits: Bits) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48).requires_grad_(False)
    layer.weight[3] = 0  # nothing to scale by
    packed, again = (QuantisedLinear(layer, bits) for _ in range(2))
    assert torch.equal(packed.packed, again.packed) and torch.equal(packed.scale, again.scale)
    error = (packed.weight - layer.weight).abs().amax(1)
    assert (error <= WORST[bits] * layer.weight.abs().amax(1) + 1e-6).all()
    assert not packed.weight[3].any()
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    ours, theirs = packed(x), F.linear(y, packed.weight, layer.bias)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("bits", WORST)
def test_few_bits_are_kept_and_no_weight_waits_for_the_backward_pass(bits: Bits) -> None:
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    packed = QuantisedLinear(layer, bits)
    each = 8 * sum(t.numel() * t.element_size() for t in packed.buffers()) / 64**2
    assert each == {"int8": 8.25, "nf4": 4.5}[bits]
    assert packed.weight.dtype == torch.bfloat16
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    look = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with look, torch.autocast("cpu", torch.bfloat16):
        output = packed(torch.randn(3, 64, requires_grad=True))
    assert output.dtype == torch.bfloat16
    assert all(tensor.numel() < 64**2 for tensor in kept)
