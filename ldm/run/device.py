"""Where a run or a script computes, and in which arithmetic."""

import torch

from ldm.config import Config
from ldm.errors import UserError
from ldm.models.precision import native_precision


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
    accelerator = config.trainer.accelerator
    if accelerator == "auto":
        return native_precision(device_of(None).type)
    return native_precision("cuda" if accelerator == "gpu" else accelerator)
