"""A run that is put together: it trains, or says why it stopped."""

import logging
from dataclasses import dataclass

import pytorch_lightning as pl
import torch

from ldm.checkpoint import ResumePoint
from ldm.config import Config
from ldm.errors import UserError
from ldm.run.data import RunData
from ldm.run.live.showing import Live
from ldm.run.measure.one_run import Measuring
from ldm.run.prepare import Prepared
from ldm.run.trouble import out_of_memory_message
from ldm.training import DreamBoothModule, Interrupt, Interrupted, ResumeState
from ldm.training.loggers import Guarded
from ldm.training.ranks import STOPPED_EARLY

log = logging.getLogger(__name__)


@dataclass
class Job:
    """All that `trainer.fit` needs. A context manager: its end is that of what the loggers hold."""

    config: Config
    ready: Prepared
    trainer: pl.Trainer
    module: DreamBoothModule
    data: RunData
    interrupt: Interrupt
    resume_state: ResumeState
    start: ResumePoint | None  # what to go on from
    live: Live  # shows how far it is
    measuring: Measuring | None = None  # where there is something to be measured

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        self.live.stopped(error)
        for logger in self.trainer.loggers:
            assert isinstance(logger, Guarded), "make_trainer wraps each"
            logger.close(failed=kind is not None)

    def fit(self) -> bool:
        """Train. False where the user stopped it before its end, with all that it had learnt saved.

        UserError: training had to stop, or the user's stop could not be saved; the message says
        what is lost and how to go on.
        """
        path = self.start.path if self.start else None
        try:
            with self.interrupt.listening():
                self.trainer.fit(
                    self.module, datamodule=self.data, ckpt_path=path, weights_only=True
                )
        except Interrupted:
            state = self.resume_state
            if state.failure:
                raise state.failure from None
            if state.stopped_at is None and self.trainer.is_global_zero:
                log.warning(STOPPED_EARLY, state.run)
            return False
        except torch.OutOfMemoryError as error:
            message = out_of_memory_message(self.config, self.ready, error)
            raise UserError(message) from error
        self.module.let_optimizer("eval")  # here: Lightning's hooks pass over a finished run
        if self.module.guard.hopeless:
            raise UserError(self.module.guard.hopeless)
        return self.resume_state.stopped_at is None
