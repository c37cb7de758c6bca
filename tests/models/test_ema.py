"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from ldm.models.ema import WeightAverage


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def test_constant_average_is_the_sum_written_out() -> None:
    module, decay = linear(), 0.9
    average = WeightAverage({"unet": module}, "constant", decay)
    history = [module.weight.detach().clone()]
    for step in range(1, 6):
        with torch.no_grad():
            module.weight.add_(torch.randn_like(module.weight))
        history.append(module.weight.detach().clone())
        average.update(step)
    expected = decay**5 * history[0]
    for age, weights in enumerate(reversed(history[1:])):
        expected = expected + (1 - decay) * decay**age * weights
    torch.testing.assert_close(average.average["unet"]["weight"], expected)


def test_power_schedule_rises_to_the_decay() -> None:
    average = WeightAverage({"unet": linear()}, "power", 0.9, 0.75)
    decays = [average.decay_at(step) for step in range(1, 50)]
    assert decays[0] == pytest.approx(1 - 2**-0.75)
    assert decays[9] == pytest.approx(1 - 11**-0.75)
    assert decays == sorted(decays) and decays[-1] == 0.9


def test_the_weights_are_only_read_and_frozen_ones_left_out() -> None:
    module = linear()
    module.bias.requires_grad_(False)
    average = WeightAverage({"unet": module}, "constant", 0.5)
    before = module.weight.detach().clone()
    average.update(1)
    assert torch.equal(module.weight, before)
    assert set(average.average["unet"]) == {"weight"}
    assert average.average["unet"]["weight"].data_ptr() != module.weight.data_ptr()


def test_saved_and_loaded() -> None:
    module = linear()
    first, second = WeightAverage({"unet": module}), WeightAverage({"unet": module})
    with torch.no_grad():
        module.weight.add_(1)
    first.update(1)
    second.load_state_dict(first.state_dict())
    for key, tensor in first.average["unet"].items():
        assert torch.equal(tensor, second.average["unet"][key])
    with pytest.raises(KeyError):
        second.load_state_dict({"unet": {}})
