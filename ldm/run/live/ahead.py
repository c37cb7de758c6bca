"""How long what is ahead of a run will take, by what took as long before."""

from pathlib import Path

from ldm.checkpoint.files import read_json
from ldm.config import Config
from ldm.evaluation.measured import SCORES
from ldm.run.measure.evaluator import FOLDER, task_of
from ldm.run.plan import missing_class_images, pictures_to_measure
from ldm.run.prepare import Prepared
from ldm.run.progress import CLASS_IMAGES, DRAWING, MEASURING, Work


class Ahead:
    """The work of a run that is not done, and how long it will take.

    Its pictures are counted, those that lie on the disk already are not. A kind of work takes as
    long each as it did last; what was not done yet, as many seconds as it has passes through the
    UNet at the pace of the pictures drawn last. So times are estimates: that of encoding pictures
    is left out, and so is measuring until the first pictures are measured.
    """

    def __init__(self, config: Config, ready: Prepared, run: Path, done: int) -> None:
        """done: steps of training that are behind the run."""
        prior, evaluation, training = config.prior, config.evaluation, config.training
        self._pictures = {CLASS_IMAGES: missing_class_images(config, ready)}
        self._sampler_steps = {CLASS_IMAGES: prior.steps if prior else 0}
        if evaluation:
            drawing = sum(pictures_to_measure(config, ready))
            drawing = max(0, drawing - _drawn(run, len(task_of(config, ready).asked)))
            self._pictures |= {DRAWING: drawing, MEASURING: drawing}
            self._sampler_steps[DRAWING] = evaluation.steps or config.sampling.steps
        samples = training.batch + (prior.batch if prior else 0)
        every, grids, steps = config.samples.every, 0, training.steps - done
        if every:
            times = training.steps // every - done // every + (done == 0)  # one before the first
            grids = times * len(config.samples.prompts) * config.samples.count
        # A guided sampler step is two passes of a picture; backward takes about two forward ones.
        self._training = steps * samples * 3 / 2 + grids * config.sampling.steps
        self._each: dict[str, float] = {}  # kind -> seconds a picture
        self._per_step: float | None = None  # seconds of a picture's sampler step

    def training_begins(self) -> None:
        """All class images are there, whichever process made them."""
        self._pictures[CLASS_IMAGES] = 0

    def worked(self, work: Work) -> None:
        """Learn from what is at hand."""
        if work.kind in self._pictures and work.each is not None:
            self._pictures[work.kind] = max(0, self._pictures[work.kind] - work.new)
            self._each[work.kind] = work.each
            if steps := self._sampler_steps.get(work.kind):
                self._per_step = work.each / steps

    def drew(self, pictures: int, sampler_steps: int, seconds: float) -> None:
        """Learn from a grid that was drawn."""
        self._per_step = seconds / (pictures * sampler_steps)

    def seconds(self, kind: str) -> float | None:
        """What is left of a kind of work; None: there is some, and nothing to tell it by."""
        pictures = self._pictures.get(kind, 0)
        if not pictures:
            return 0.0
        if kind in self._each:
            return pictures * self._each[kind]
        if self._per_step is None:
            return None
        return pictures * self._sampler_steps.get(kind, 0) * self._per_step

    def training(self) -> float | None:
        """All of training, before it has a pace of its own."""
        return None if self._per_step is None else self._training * self._per_step

    def evaluation(self) -> float | None:
        """Drawing and measuring, on the way and at the end."""
        drawing, measuring = self.seconds(DRAWING), self.seconds(MEASURING)
        return None if drawing is None or measuring is None else drawing + measuring


def _drawn(run: Path, each: int) -> int:
    """Pictures of this run's snapshots that are drawn; of one that is measured all are."""
    folders = [path for path in (run / FOLDER).glob("step-*") if path.is_dir()]
    measured = [folder for folder in folders if read_json(folder / SCORES)]
    rest = [len(list(path.rglob("*.png"))) for path in folders if path not in measured]
    return each * len(measured) + sum(rest)
