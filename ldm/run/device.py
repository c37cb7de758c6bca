"""Where a run or a script computes, and in which arithmetic."""

import torch

from ldm.config import Config
from ldm.errors import UserError
from ldm.models.precision import AUTOCAST, native_precision


def device_of(name: str | None) -> torch.device:
    """Return the named device, or the accelerator that torch finds, or the CPU.

    UserError: it cannot be used.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); cpu always can") from error


def precision_of(config: Config) -> str:
    """`training.precision`; "auto" is what a run's device has instructions for."""
    if config.training.precision != "auto":
        return config.training.precision
    return native_precision(kind_of_device(config))


def autocast_dtype(config: Config) -> torch.dtype | None:
    """What is computed in where that is not float32. Lightning makes bf16 of 16-mixed on CPUs."""
    dtype = AUTOCAST[precision_of(config)]
    on_cpu = dtype is torch.float16 and kind_of_device(config) == "cpu"
    return torch.bfloat16 if on_cpu else dtype


def kind_of_device(config: Config) -> str:
    """What a run computes on: "cpu", "cuda", ..."""
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        return device_of(None).type
    return "cuda" if accelerator == "gpu" else accelerator
