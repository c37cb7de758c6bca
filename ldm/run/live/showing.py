"""A run that is under way, for people to look at: one display on the terminal, and its page."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image

from ldm.checkpoint.resume import NEWEST
from ldm.config import Config
from ldm.evaluation.report import Status, write_live
from ldm.run.folder import is_first_process
from ldm.run.live.ahead import Ahead
from ldm.run.measure.results import headline
from ldm.run.prepare import Prepared
from ldm.run.progress import CLASS_IMAGES, Work, counted
from ldm.training import Metrics, ResumeState, Snapshots, TrainingProgress
from ldm.training.display import Display, clock
from ldm.training.progress import step_callbacks
from ldm.training.steps import StepCallback, is_due

log = logging.getLogger(__name__)


class Live(StepCallback):
    """Shows how far a run is, how long it will take, how good it is, and where to look.

    On the terminal through `display`, which all that counts shares, and on the run's page,
    report.html: that is written anew whenever there is something to see (a grid, a snapshot, a
    save, a measurement), and every HEARTBEAT seconds, but never for more than SHARE of the time.
    What cannot be shown is warned of, once, and costs the run nothing. To stand last in the list of
    callbacks.
    """

    HEARTBEAT = 60.0
    SHARE = 0.02
    REFRESH = 30  # seconds after which a browser reads the page again

    def __init__(
        self, config: Config, ready: Prepared, run: Path, state: ResumeState, done: int = 0
    ) -> None:
        """state: tells what is saved. done: steps that are behind the run."""
        super().__init__()
        self.config, self.run, self.state = config, run, state
        self.display = Display()
        self.ahead = Ahead(config, ready, run, done)
        self.progress = TrainingProgress(Metrics(run), self.display, self._beyond)
        self.counted = partial(counted, display=self.display, watch=self._watch)
        self.concluded = False  # all that a run does is done
        self.over = False  # and the report is written
        self._writes = is_first_process(config)
        self._trainer: pl.Trainer | None = None  # from the start of training on
        self._step = self._done = done
        self._doing = "Getting ready"
        self._began = time.monotonic()
        self._written = -float("inf")  # when the page was
        self._took = 0.0  # seconds, to write it
        self._failing = False

    def timed(
        self, draw: Callable[[torch.device], Image.Image], pictures: int
    ) -> Callable[[torch.device], Image.Image]:
        """`draw`, which draws a grid of so many pictures, and its time known."""

        def drawn(device: torch.device) -> Image.Image:
            began = time.perf_counter()
            grid = draw(device)
            seconds = time.perf_counter() - began
            self.ahead.drew(pictures, self.config.sampling.steps, seconds)
            return grid

        return drawn

    # --- what happens

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trainer, self._step = trainer, trainer.global_step
        self._doing = f"Training: step {self._step} of {trainer.max_steps}"
        self.ahead.training_begins()
        with self._harmless():
            self._note(self._step)
            self._renew()

    def on_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        self._step, self._doing = step, f"Training: step {step} of {trainer.max_steps}"
        seen = [one for one in step_callbacks(trainer) if is_due(step, one.every, trainer)]
        with self._harmless():
            if seen:
                self._note(step)
            if seen or time.monotonic() - self._written > self.HEARTBEAT:
                self._renew()

    def _watch(self, work: Work) -> float | None:
        self.ahead.worked(work)
        done = f"{work.title}: {work.done} of {work.total}"
        self._doing = done[0].upper() + done[1:]
        with self._harmless():
            if self._trainer is not None:  # a grid that was just drawn, before what is at hand
                self._note_grid(self._trainer.global_step)
            if time.monotonic() - self._written > self.HEARTBEAT:
                self._renew()
        left = self.left().values()
        return None if None in left else sum(one for one in left if one is not None)

    def stopped(self, error: BaseException | None) -> None:
        """Nothing comes after it: the page says so, where there is one and it is not the report."""
        if self.over or self._written < 0:
            return
        where = f"after step {self._step} of {self.config.training.steps}"
        if self._trainer is not None and self._step >= self._trainer.max_steps:
            where = "training is complete, what comes after it is not"
        why = f"by an error: {' '.join(str(error).split())}" if error else "before its end"
        self._doing = f"Stopped {why} ({where})"
        if self.concluded:
            self._doing = "The run is complete; its report could not be written"
        with self._harmless():
            self._write(going=False)

    def _note(self, step: int) -> None:
        """Have the display show what is new of a step."""
        self._note_grid(step)
        if self._writes and (numbers := headline(self.run, step)):
            self.display.note("measured", numbers)

    def _note_grid(self, step: int) -> None:
        grid = self.run / "samples" / f"step-{step:06d}.png"
        if self._writes and grid.exists():
            self.display.note("newest grid", str(grid))

    # --- how long

    def left(self) -> dict[str, float | None]:
        """Seconds that each part of the run will take that is not over; None: not known yet."""
        training = self._training_left()
        parts = {
            CLASS_IMAGES: self.ahead.seconds(CLASS_IMAGES),
            "training": training,
            "evaluation": self.ahead.evaluation(),
            "export": self._export_left(),
        }
        return {name: seconds for name, seconds in parts.items() if seconds is None or seconds > 0}

    def _training_left(self) -> float | None:
        if self._trainer is None:
            return self.ahead.training()
        if self._step >= self._trainer.max_steps:
            return 0.0
        own = self.progress.left(self._trainer)
        return self.ahead.training() if own is None else own

    def _export_left(self) -> float | None:
        """About as a snapshot, which holds most of what an export does."""
        section = self.config.evaluation
        if section is None or not section.export:
            return 0.0
        callbacks = step_callbacks(self._trainer) if self._trainer else []
        took = [one.took for one in callbacks if isinstance(one, Snapshots) and one.took]
        return took[0] if took else 0.0

    def _beyond(self) -> float | None:
        evaluation, export = self.ahead.evaluation(), self._export_left()
        return None if evaluation is None or export is None else evaluation + export

    # --- the page

    def _renew(self) -> None:
        if time.monotonic() - self._written >= self._took / self.SHARE:
            self._write()

    def _write(self, going: bool = True) -> None:
        if not self._writes or not self.run.is_dir():
            return
        began = time.monotonic()
        try:
            write_live(self.run, self._status(going))
            self._failing = False
        finally:
            self._written = time.monotonic()
            self._took = self._written - began

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Inside, an error is a warning."""
        try:
            yield
        except Exception as error:
            if not self._failing:
                log.warning(
                    "no page in %s, the run goes on: %s: %s",
                    *(self.run, type(error).__name__, error),
                )
            self._failing = True

    def _status(self, going: bool) -> Status:
        left = self.left() if going else {}
        known = [seconds for seconds in left.values() if seconds is not None]
        running = time.monotonic() - self._began
        share = None
        if going and len(known) == len(left):
            share = running / max(1e-9, running + sum(known))
        whole = f", about {clock(sum(known))} to the end" if share is not None else ""
        return Status(
            doing=f"{self._doing}{whole}.",
            go_on=f"python main.py --resume {self.run}",
            share=share,
            refresh=self.REFRESH if going else None,
            facts=list(self._facts(going, left, running)),
        )

    def _facts(
        self, going: bool, left: dict[str, float | None], running: float
    ) -> Iterator[tuple[str, str]]:
        now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
        if going:
            yield (
                "written",
                f"{now}. While the run goes on, this page is written again every minute or few; "
                "where that is long ago, the run was stopped.",
            )
        else:
            yield "written", now
        yield "running for", clock(running)
        for name, seconds in left.items():
            if seconds is not None and seconds < 1:
                continue
            told = "not known yet" if seconds is None else f"about {clock(seconds)}"
            yield f"{name}, left", told
        latest = self.progress.metrics.latest
        if loss := self.progress.losses():
            yield "newest loss", f"{loss} (step {latest['step']:.0f})"
        yield "last save", self._last_save()

    def _last_save(self) -> str:
        try:
            when = datetime.fromtimestamp((self.run / NEWEST).stat().st_mtime)
        except OSError:
            return "none yet: a run that is killed now starts over"
        saved = max(self.state.saved, self._done)
        return f"after step {saved}, at {when:%H:%M:%S}; a kill costs the steps since"
