"""From pictures to the stream of training batches, in every process."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import ImageColor
from torch.utils.data import DataLoader

from ldm.config import Config
from ldm.data.dataset import TrainingSet
from ldm.data.latents import Latents, encode_pictures
from ldm.run.plan import prior_folder
from ldm.run.prepare import Prepared
from ldm.run.progress import counted
from ldm.sampling.prior import class_images, make_class_images
from ldm.training import Interrupt


class RunData(pl.LightningDataModule):
    """Class images, latents, training stream.

    All is made in `setup`, since only then does each process know its rank, and so its share of
    the class images.
    """

    def __init__(self, config: Config, ready: Prepared, interrupt: Interrupt) -> None:
        super().__init__()
        self.config, self.ready, self.interrupt = config, ready, interrupt
        self.instance: Latents | None = None
        self.prior: Latents | None = None

    def setup(self, stage: str) -> None:
        """Make the missing class images and encode every picture.

        UserError: disk not writable. Interrupted: the user asked to stop; what is made stays.
        """
        device = self._trainer.strategy.root_device
        pictures = self._class_pictures(device)
        self.instance = self._encoded(self.ready.pictures, device, "pictures encoded")
        if pictures:
            self.prior = self._encoded(pictures, device, "class images encoded")

    def train_dataloader(self) -> DataLoader:
        """The stream from the step that the run is at."""
        config, prior, trainer = self.config, self.config.prior, self._trainer
        assert self.instance is not None
        stream = TrainingSet(
            self.instance,
            self.ready.prompts,
            self.prior,
            prior.prompt if prior else "",
            batch=config.training.batch,
            prior_batch=prior.batch if prior else 0,
            accumulate=config.training.accumulate,
            seed=config.seed,
            start_step=trainer.global_step,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return DataLoader(stream, batch_size=None)

    @property
    def _trainer(self) -> Any:
        assert self.trainer is not None, "the Trainer sets this"
        return self.trainer

    def _class_pictures(self, device: torch.device) -> list[Path]:
        prior, ready, trainer = self.config.prior, self.ready, self._trainer
        if prior is None or prior.folder:
            return ready.own_class_pictures
        with counted("class images made", self.interrupt.check) as report:
            make_class_images(
                ready.base.to(device),
                prior.prompt,
                prior.count,
                prior.root,
                seed=prior.seed,
                batch=prior.sampling_batch,
                scale=prior.scale,
                steps=prior.steps,
                sampler=prior.sampler,
                resolution=ready.resolution,
                rank=trainer.global_rank,
                world=trainer.world_size,
                progress=report,
            )
        trainer.strategy.barrier("class images")
        # No more than were asked for: another run may have made more, before this one resumed.
        return class_images(prior_folder(self.config, ready), ready.resolution)[: prior.count]

    def _encoded(self, pictures: list[Path], device: torch.device, title: str) -> Latents:
        data, base = self.config.data, self.ready.base
        red, green, blue = ImageColor.getrgb(self.config.subject.background)[:3]
        with counted(title, self.interrupt.check) as report:
            return encode_pictures(
                base.vae,
                base.vae_fingerprint,
                pictures,
                self.ready.resolution,
                crop=data.crop,
                crops=data.crops,
                mirror=data.mirror,
                background=(red, green, blue),
                seed=self.config.seed,
                cache=Path(data.cache) if data.cache else None,
                device=device,
                progress=report,
            )
