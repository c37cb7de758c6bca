"""Where a script computes."""

import torch

from ldm.errors import UserError


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
