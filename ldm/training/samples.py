"""Pictures in the middle of training: the same prompts and seeds each time."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from ldm.checkpoint.files import flush, staging
from ldm.errors import UserError, explain_disk_errors
from ldm.sampling.metadata import png_info
from ldm.training.loggers import Guarded
from ldm.training.optim import weights_to_look_at
from ldm.training.steps import StepCallback, is_due, share_failure

log = logging.getLogger(__name__)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Inside, no gradients; afterwards, random states and train/eval modes are what they were."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


class SampleGrid(StepCallback):
    """Writes RUN/samples/step-000000.png at step 0, every so many steps and after the last.

    draw: device -> the labelled grid; it uses the networks that are being trained. every: 0 for
    none. settings: the picture's provenance, as `png_info` takes it; the step is added. The picture
    also goes to TensorBoard and W&B. A failure at step 0 stops the run, in all processes; a later
    one is logged and training goes on, since by then there is something to lose.
    """

    def __init__(
        self,
        run: Path,
        every: int,
        draw: Callable[[torch.device], Image.Image],
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.folder = Path(run) / "samples"
        self.every = every
        self.draw = draw
        self.settings = settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and self.every > 0:
            self.act(trainer, pl_module, 0)

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        if not is_due(step, self.every, trainer):
            return
        failure = None
        if trainer.is_global_zero:
            try:
                with undisturbed(pl_module), weights_to_look_at(trainer.optimizers[0]):
                    grid = self.draw(pl_module.device)
                path = self.folder / f"step-{step:06d}.png"
                save_picture(grid, path, {**self.settings, "step": step})
                for logger in trainer.loggers:
                    if isinstance(logger, Guarded):
                        logger.log_picture("samples", grid, step)
            except Exception as error:
                if step == 0:
                    failure = error
                else:
                    known = isinstance(error, UserError)
                    log.error(
                        "no sample grid at step %d, training goes on: %s",
                        *(step, error),
                        exc_info=not known,
                    )
        share_failure(trainer, failure)  # the other processes wait here


def save_picture(picture: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a PNG with its provenance, staged; makes the folder. UserError: disk not writable."""
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging(path) as staged:
            picture.save(staged, format="PNG", pnginfo=png_info(settings))
            flush(staged)
