"""From pictures to the stream of training batches, in every process."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm.config import Config, Prior
from ldm.data.dataset import Pictures, Source, TrainingSet
from ldm.data.latents import Latents, Transform, encode_pictures
from ldm.data.masks import with_masks
from ldm.models.base import BaseModel
from ldm.run.plan import class_settings, prior_folder
from ldm.run.prepare import Prepared
from ldm.run.progress import CLASS_IMAGES, Counted, counted, logged
from ldm.run.subjects import class_prompts
from ldm.run.transform import bucket_line, square_transform, subject_transform
from ldm.sampling.live import LiveClassImages, Ring
from ldm.sampling.prior import ClassImageMaker, class_images, make_class_images
from ldm.training import Interrupt

log = logging.getLogger(__name__)
CLASS_PICTURE = "class_picture"  # the purpose of the draws that choose one


class RunData(pl.LightningDataModule):
    """Class images, latents, training stream.

    All is made in `setup`, since only then does each process know its rank, and so its share of
    the class images. counted: shows how far it is.
    """

    def __init__(
        self, config: Config, ready: Prepared, interrupt: Interrupt, counted: Counted = counted
    ) -> None:
        super().__init__()
        self.config, self.ready, self.interrupt = config, ready, interrupt
        self.counted = counted
        self.subjects: list[Source] = []
        self.classes: list[Source] = []

    def setup(self, stage: str) -> None:
        """Make the missing class images and encode every picture.

        UserError: disk not writable. Interrupted: the user asked to stop; what is made stays.
        """
        prior, device = self.config.prior, self._trainer.strategy.root_device
        self.classes = []
        if prior and prior.images == "cached":
            self.classes = self._cached_classes(prior, device)
        self.subjects = self._subjects(device)  # with prior.images=subject they are classes too
        if prior and prior.images == "live":
            self.classes = self._live_classes(prior, device)

    def on_exception(self, exception: BaseException) -> None:
        """Stop making class images: the state is saved next, and that wants the device."""
        self.teardown("fit")

    def teardown(self, stage: str) -> None:
        """Stop making class images."""
        for source in self.classes:
            if isinstance(source, LiveClassImages):
                source.close()

    def train_dataloader(self) -> DataLoader:
        """The stream from the step that the run is at."""
        config, prior, trainer = self.config, self.config.prior, self._trainer
        stream = TrainingSet(
            self.subjects,
            self.classes,
            batch=config.training.batch,
            prior_batch=prior.batch if prior else 0,
            accumulate=config.training.accumulate,
            seed=config.seed,
            start_step=trainer.global_step,
            rank=trainer.global_rank,
            world=trainer.world_size,
            caption_dropout=config.objective.caption_dropout,
            prior_caption_dropout=prior.caption_dropout if prior else None,
        )
        return DataLoader(stream, batch_size=None)

    @property
    def _trainer(self) -> Any:
        assert self.trainer is not None, "the Trainer sets this"
        return self.trainer

    def _subjects(self, device: torch.device) -> list[Source]:
        """One source per subject; where they stand for their classes too, those as well."""
        sources: list[Source] = []
        prior, transform = self.config.prior, subject_transform(self.config, self.ready)
        for number, subject in enumerate(self.ready.subjects):
            if transform.multiple and self._trainer.is_global_zero:
                log.info("trained in buckets: %s", bucket_line(transform, subject.pictures))
            latents = self._encoded(subject.pictures, transform, device, "pictures encoded")
            if prior and prior.images == "subject":
                prompts = [subject.class_prompts] * len(latents)
                self.classes.append(
                    Pictures(latents, prompts, purpose=CLASS_PICTURE, number=number)
                )
            if self.config.objective.mask_outside is not None:
                latents = with_masks(latents, subject.pictures, transform)
            sources.append(Pictures(latents, subject.prompts, weight=subject.weight, number=number))
        return sources

    def _cached_classes(self, prior: Prior, device: torch.device) -> list[Source]:
        """One source per class prompt, of class images on disk, made where they are missing.

        Your own class pictures are all of the first prompt.
        """
        sources: list[Source] = []
        own, transform = self.ready.own_class_pictures, square_transform(self.config, self.ready)
        for number, prompt in enumerate(class_prompts(self.ready.subjects)[: 1 if own else None]):
            pictures = own or self._made(prior, prompt, device)
            latents = self._encoded(pictures, transform, device, "class images encoded")
            prompts = [[prompt]] * len(latents)
            sources.append(Pictures(latents, prompts, purpose=CLASS_PICTURE, number=number))
        return sources

    def _live_classes(self, prior: Prior, device: torch.device) -> list[Source]:
        """One source per class, of class images that are made while training."""
        frozen, trainer = self.ready.frozen, self._trainer
        assert frozen is not None, "prepare makes it"
        base = frozen.to(device)
        return [
            LiveClassImages(
                self._maker(base.with_own_tokenizers(), prior, prompt),
                Ring(prior.count, prior.uses),
                mirror=self.config.data.mirror,
                rank=trainer.global_rank,
                world=trainer.world_size,
                exchange=lambda owner, payload: trainer.strategy.broadcast(payload, src=owner),
                check=self.interrupt.check,
                report=logged(f"class images of {prompt!r} made"),
            )
            for prompt in class_prompts(self.ready.subjects)
        ]

    def _maker(self, base: BaseModel, prior: Prior, prompt: str) -> ClassImageMaker:
        settings = class_settings(prior, self.ready)
        return ClassImageMaker(base, prompt, settings, prior.sampling_batch)

    def _made(self, prior: Prior, prompt: str, device: torch.device) -> list[Path]:
        ready, trainer = self.ready, self._trainer
        batch = prior.sampling_batch
        with self.counted("class images made", self.interrupt.check, CLASS_IMAGES, batch) as report:
            make_class_images(
                self._maker(ready.base.to(device), prior, prompt),
                prior.count,
                prior.root,
                rank=trainer.global_rank,
                world=trainer.world_size,
                ledger=ready.ledger,
                progress=report,
            )
        trainer.strategy.barrier("class images")
        # No more than were asked for: another run may have made more, before this one resumed.
        folder = prior_folder(self.config, ready, prompt)
        return class_images(folder, ready.resolution, ready.ledger)[: prior.count]

    def _encoded(
        self, pictures: list[Path], transform: Transform, device: torch.device, title: str
    ) -> Latents:
        cache, base = self.config.data.cache, self.ready.base
        with self.counted(title, self.interrupt.check) as report:
            return encode_pictures(
                base.vae,
                base.vae_fingerprint,
                pictures,
                transform,
                cache=Path(cache) if cache else None,
                ledger=self.ready.ledger,
                device=device,
                progress=report,
            )
