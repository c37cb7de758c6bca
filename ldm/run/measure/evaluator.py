"""What every model is asked alike, its pictures and its numbers."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.files import flush, read_json, staging
from ldm.config import Config
from ldm.data.prompts import prompts_of
from ldm.errors import UserError, explain_disk_errors
from ldm.evaluation.heldout_loss import heldout_loss, heldout_losses, posterior_means
from ldm.evaluation.measure import Measurer, floor_of
from ldm.evaluation.measured import Measured, Scores
from ldm.evaluation.pictures import (
    ABOUT,
    Asked,
    ask,
    ask_class_again,
    draw,
    files_of,
    prepare_folder,
    read_asked,
)
from ldm.models.base import BaseModel
from ldm.objective import NoiseSchedule
from ldm.run.device import precision_of
from ldm.run.measure.instruments import Instruments, questions_of
from ldm.run.prepare import Prepared
from ldm.run.progress import DRAWING, MEASURING, Counted, counted
from ldm.run.settings import sampling_settings
from ldm.run.sheet import readable
from ldm.run.subjects import subjects_of
from ldm.sampling.prior import is_whole

log = logging.getLogger(__name__)

FOLDER, BASE, AGAIN = "evaluation", "base", "base-again"  # in a run folder, and in that
LOSS_PICTURES = 64  # class pictures whose loss is taken


@dataclass
class Task:
    """What is asked of every model, and what the answers are compared with."""

    identifier: str
    class_noun: str
    asked: list[Asked]
    again: list[Asked]  # a second draw of the untouched base's class pictures
    sampling: dict[str, Any]  # `generate`'s keyword arguments
    precision: str
    seed: int
    training: list[Path]
    heldout: list[Path]
    prompts: dict[Path, str]  # of each of these pictures

    def folder_of(self, fingerprint: str) -> str:
        """Name of the folder with a base's pictures: what decides them, hashed."""
        sampling = {key: value for key, value in self.sampling.items() if key != "batch"}
        asked = [asdict(one) for one in (*self.asked, *self.again)]
        text = json.dumps([asked, sampling, self.precision], sort_keys=True)
        return f"{fingerprint[:12]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def task_of(config: Config, ready: Prepared) -> Task:
    """The section `evaluation`, about the first subject. UserError: nothing to ask."""
    evaluation, (subject, *_) = config.evaluation, subjects_of(config)
    assert evaluation is not None
    questions = questions_of(config, ready.instruments.oracle)
    counts = (evaluation.images, evaluation.class_images, evaluation.unrelated_images)
    sampling = sampling_settings(config, ready.resolution)
    sampling["steps"] = evaluation.steps or sampling["steps"]
    pictures = [*ready.pictures, *ready.heldout]
    captions = config.subject.captions
    prompts = prompts_of(pictures, subject.prompt, subject.identifier, captions)
    return Task(
        identifier=subject.identifier,
        class_noun=subject.class_noun,
        asked=ask(questions, *counts, evaluation.seed),
        again=ask_class_again(questions, evaluation.class_images, evaluation.seed),
        sampling=sampling,
        precision=precision_of(config),
        seed=evaluation.seed,
        training=ready.pictures,
        heldout=ready.heldout,
        prompts={path: first for path, (first, *_) in zip(pictures, prompts, strict=True)},
    )


class Evaluator:
    """Draws and measures; what lies on the disk already is neither drawn nor measured again.

    folder: of the run's own pictures, FOLDER/step-000300/...; root: of those of untouched bases,
    which runs share (the run has links to them). untouched: loads the base, on the device that it
    is to draw on. check: called now and then; what it raises ends the work, and costs no more than
    a batch of pictures. counted: shows how far it is. UserError: none of the subject's pictures can
    be read.
    """

    def __init__(
        self,
        task: Task,
        instruments: Instruments,
        folder: Path,
        root: Path,
        untouched: Callable[[], BaseModel],
        check: Callable[[], None],
        counted: Counted = counted,
    ) -> None:
        self.task, self.folder, self.root = task, folder, root
        self.untouched, self.check, self.counted = untouched, check, counted
        paths = [*task.training, *task.heldout]
        found = {path: picture for path in paths for picture in readable([path])}
        training = [found[path] for path in task.training if path in found]
        heldout = [found[path] for path in task.heldout if path in found]
        if not training:
            folders = ", ".join(dict.fromkeys(str(path.parent) for path in task.training))
            raise UserError(f"no picture of the subject can be read from {folders}; put them back")
        self.measurer = Measurer(
            task.identifier,
            training,
            heldout,
            oracle=instruments.oracle,
            extractors=instruments.extractors,
            lpips=instruments.lpips,
        )
        self._shown = [path for path in task.heldout or task.training if path in found]
        self._pictures = found
        self._base: Measured | None = None
        self.fingerprint = ""  # of the untouched base, once it was loaded
        self._losses: list[tuple[str, Tensor, list[str]]] = []  # metric, latents, prompts
        self._schedule: NoiseSchedule | None = None

    def base(self) -> Measured:
        """The untouched base's numbers."""
        if self._base is None:
            self.check()
            model = self.untouched()
            shared = self.root / self.task.folder_of(model.fingerprint)
            with alone(shared, self.check):
                self._draw(shared, model, self.task.asked, "untouched base drawn")
                self._draw(shared / "again", model, self.task.again, "untouched base drawn again")
                link(shared, self.folder / BASE)
                link(shared / "again", self.folder / AGAIN)
            self.fingerprint = model.fingerprint
            self._prepare_losses(model)
            self._base = self._measure(self.folder / BASE, model, None)
        return self._base

    def floor(self) -> Scores:
        """What two draws of the untouched base differ by."""
        base = self.base()
        with self.counted("second draw measured", self.check, MEASURING) as progress:
            return floor_of(self.measurer.measure(self.folder / AGAIN, base, progress=progress))

    def measure(self, name: str, model: BaseModel, fingerprint: str, title: str) -> Measured:
        """A model's numbers beside the base's; its pictures go into FOLDER/`name`.

        fingerprint: of the weights that `model` holds now.
        """
        base = self.base()
        self._draw(self.folder / name, model, self.task.asked, f"{title} drawn", fingerprint)
        return self._measure(self.folder / name, model, base, f"{title} measured")

    def _draw(
        self, folder: Path, model: BaseModel, asked: list[Asked], title: str, weights: str = ""
    ) -> None:
        own = f"{self.folder.resolve().parent.name} {folder.name}"
        batch = self.task.sampling["batch"]
        with self.counted(title, self.check, DRAWING, batch) as progress:
            draw(
                folder,
                model,
                asked,
                self.task.sampling,
                fingerprint=weights or model.fingerprint,
                name=own if weights else model.source,
                precision=_possible(self.task.precision, model.device),
                progress=progress,
            )

    def _measure(
        self, folder: Path, model: BaseModel, base: Measured | None, title: str = "base measured"
    ) -> Measured:
        with self.counted(title, self.check, MEASURING) as progress:
            losses = partial(self._losses_of, model)
            return self.measurer.measure(folder, base, losses=losses, progress=progress)

    def _prepare_losses(self, model: BaseModel) -> None:
        """Latents of what the held-out loss is about: encoded once, the VAE is never trained."""
        task, side = self.task, self.task.sampling["height"]
        self._schedule = NoiseSchedule.from_scheduler(model.scheduler)
        of_class = [one for one in task.asked if one.about == "class"][:LOSS_PICTURES]
        files = [name for name in files_of(task.asked) if name.startswith("class/")]
        shown: dict[str, tuple[list[Image.Image], list[str]]] = {
            "loss/subject": (
                [self._pictures[path] for path in self._shown],
                [task.prompts[path] for path in self._shown],
            ),
            "loss/class": (
                readable([self.folder / BASE / name for name in files[:LOSS_PICTURES]]),
                [one.prompt for one in of_class],
            ),
        }
        self._losses = [
            (name, posterior_means(model, pictures, side), prompts)
            for name, (pictures, prompts) in shown.items()
        ]

    def _losses_of(self, model: BaseModel) -> Scores:
        """The held-out losses of the subject's and of class pictures."""
        assert self._schedule is not None, "the base is measured first"
        scores = {}
        for name, latents, prompts in self._losses:
            self.check()
            losses = heldout_losses(
                model,
                self._schedule,
                latents,
                prompts,
                self.task.seed,
                batch=self.task.sampling["batch"],
                precision=_possible(self.task.precision, model.device),
                progress=self._checked,
            )
            scores[name] = heldout_loss(losses)
        return scores

    def _checked(self, done: int, total: int) -> None:
        self.check()


def _possible(precision: str, device: torch.device) -> str:
    """As Lightning does: a CPU has no 16-mixed."""
    return "bf16-mixed" if precision == "16-mixed" and device.type == "cpu" else precision


@contextlib.contextmanager
def alone(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Inside, no other process that asks here too makes files in `folder`; wait for that."""
    with explain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock, told = filelock.FileLock(folder.with_name(f".{folder.name}.lock")), False
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except filelock.Timeout:
                check()
                if not told:
                    log.info("%s: another process draws there, waiting for it", folder)
                told = True
    try:
        yield
    finally:
        lock.release()


def link(source: Path, target: Path) -> None:
    """Have `target` hold the pictures of `source`: as links, which take no room, or as copies.

    Pictures of others are removed first, damaged ones are replaced. UserError: disk not writable.
    """
    asked = read_asked(source)
    prepare_folder(target, read_json(source / ABOUT) or {})
    with explain_disk_errors(target):
        for name in files_of(asked):
            path = target / name
            if is_whole(path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                os.link(source / name, path)
            except OSError:
                with staging(path) as staged:
                    shutil.copyfile(source / name, staged)
                    flush(staged)
