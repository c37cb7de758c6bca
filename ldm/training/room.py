"""Whether the disk has room for what training will save."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.tensors import tensor_bytes

log = logging.getLogger(__name__)


def state_bytes(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """About what a resume state takes on the disk: the module's tensors and the optimizers'.

    Before its first step an optimizer has no tensors: those of Adam, two per parameter and of
    float32 at least, are reckoned with.
    """
    size = tensor_bytes(module.state_dict())
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [value for value in kept if isinstance(value, Tensor)]
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if not tensors:
            size += sum(2 * p.numel() * max(4, p.element_size()) for p in parameters)
    return size


def warn_of_little_room(run: Path, needed: int) -> None:
    """Warn when the disk of `run` has less than `needed` bytes free: a save would fail."""
    present = next(path for path in (run, *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(present).free
    if free < needed:
        log.warning(
            "%s: the resume states (two, and one while it is written) and the next snapshot need "
            "about %.0f MiB more, %.0f MiB are free: training will stop when it saves; make room "
            "there, keep fewer (snapshots.keep), or start the run on another disk (logs=FOLDER)",
            *(run, needed / 2**20, free / 2**20),
        )
