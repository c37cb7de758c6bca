"""Loggers that cannot stop training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)


class Guarded(Logger):
    """Passes everything on to another logger, until that one fails: it is then dropped.

    A full disk (TensorBoard's writer thread tells of it at some later call) or a service that is
    out of reach costs the curves and not the run: one warning says what failed and why, and from
    then on nothing is passed on. Lightning's own calls come through here too.
    """

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.logger = logger
        self.title = type(logger).__name__.removesuffix("Logger")
        self.dropped = False

    def _try(self, call: Callable[[], Any], otherwise: Any = None) -> Any:
        if self.dropped:
            return otherwise
        try:
            return call()
        except Exception as error:
            self.dropped = True
            cause = error.__cause__ or error  # TensorBoardLogger hides a full disk behind another
            log.warning(
                "%s failed and gets nothing more, training goes on: %s: %s",
                *(self.title, type(cause).__name__, cause),
            )
            return otherwise

    @property
    def name(self) -> str | None:
        return self._try(lambda: self.logger.name)

    @property
    def version(self) -> int | str | None:
        return self._try(lambda: self.logger.version)

    @property
    def save_dir(self) -> str | None:
        return self._try(lambda: self.logger.save_dir)

    @property
    def log_dir(self) -> str | None:
        return self._try(lambda: self.logger.log_dir)

    @property
    def experiment(self) -> Any:
        """Lightning reads it in `fit`, before the data are set up, so that files are opened."""
        return self._try(lambda: getattr(self.logger, "experiment", None))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._try(lambda: self.logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._try(lambda: self.logger.log_hyperparams(params, *args, **kwargs))

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Give a picture to a logger that takes pictures (TensorBoard, W&B)."""

        def give() -> None:
            if isinstance(self.logger, TensorBoardLogger):
                pixels = np.asarray(picture.convert("RGB"))  # H W 3, uint8
                self.logger.experiment.add_image(name, pixels, step, dataformats="HWC")
            elif isinstance(self.logger, WandbLogger):
                self.logger.log_image(name, [picture], step=step)

        self._try(give)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Give a text in Markdown to TensorBoard; W&B has what it says as its config."""
        if isinstance(board := self.logger, TensorBoardLogger):
            self._try(lambda: board.experiment.add_text(name, text, step))

    def log_separation(
        self, name: str, labels: Sequence[bool], scores: Sequence[float], step: int
    ) -> None:
        """Give TensorBoard precision and recall of telling `labels` by a threshold on `scores`.

        Scores are cut to [0, 1], where TensorBoard has its thresholds.
        """
        if isinstance(board := self.logger, TensorBoardLogger):
            shown = np.clip(np.asarray(scores, np.float64), 0, 1)
            truth = np.asarray(labels, bool)
            self._try(lambda: board.experiment.add_pr_curve(name, truth, shown, step))

    def log_end(self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Give TensorBoard what a run was told beside what came of it, for its hparams tab."""
        if isinstance(board := self.logger, TensorBoardLogger):
            self._try(lambda: board.log_hyperparams({**settings}, {**metrics}, step))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Give W&B a table."""
        if isinstance(wandb := self.logger, WandbLogger):
            self._try(lambda: wandb.log_table(name, columns, rows, step=step))

    def log_model(self, folder: Path, step: int, about: Mapping[str, Any]) -> None:
        """Give W&B a model's folder as an artifact, without a copy; offline for `wandb sync`."""
        if isinstance(self.logger, Wandb):
            self._try(partial(self.logger.log_model, folder, step, about))

    def save(self) -> None:
        self._try(self.logger.save)

    def finalize(self, status: str) -> None:
        self._try(lambda: self.logger.finalize(status))

    def close(self, failed: bool) -> None:
        """Nothing comes after it: all is written, and a service that is held open (W&B) ended."""
        if isinstance(self.logger, Wandb):
            self._try(partial(self.logger.close, failed))
        else:
            self._try(partial(self.logger.finalize, "failed" if failed else "success"))


class Wandb(WandbLogger):
    """W&B that goes on offline where it cannot start online: no question asked, no long wait.

    The arguments are WandbLogger's. Not logged in, no network or a server that does not answer
    within START_SECONDS: one warning, and the run is written to `save_dir` for `wandb sync`. At
    the end, what is not sent within END_SECONDS stays there too.
    """

    START_SECONDS = 20.0
    OFFLINE_SECONDS = 300.0  # to start offline: no network to wait for, perhaps a slow machine
    END_SECONDS = 120.0
    BYTES_A_SECOND = 1e6  # of an upload, at the least

    def __init__(self, *, save_dir: Path, offline: bool = False, **options: Any) -> None:
        super().__init__(save_dir=save_dir, settings=self._limits(self.START_SECONDS), **options)
        if offline:
            self._go_offline()

    @property
    def experiment(self) -> Any:
        """The W&B run; a process that does not write gets a stand-in."""
        if is_writer() and self._experiment is None and not self._offline:
            try:
                check_login()
                return super().experiment
            except Exception as error:
                self._fall_back(error)
        return super().experiment

    def close(self, failed: bool) -> None:
        """End the W&B run; left open, the next logger of this process would write into it."""
        if self._experiment is not None and is_writer():
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    def log_model(self, folder: Path, step: int, about: Mapping[str, Any]) -> None:
        """See `Guarded.log_model`."""
        import wandb

        name = f"{self.experiment.id}-model"
        artifact = wandb.Artifact(name, type="model", metadata={**about, "step": step})
        artifact.add_dir(str(folder), policy="immutable")  # else each file is copied first
        sent = self.experiment.log_artifact(artifact, aliases=["latest", f"step-{step}"])
        if not self._offline:  # END_SECONDS are for what is small
            sent.wait(timeout=int(self.END_SECONDS + artifact.size / self.BYTES_A_SECOND))

    def _fall_back(self, error: Exception) -> None:
        import wandb

        wandb.teardown()  # else the run that did not start still owns its id
        self._go_offline()
        log.warning(
            "W&B cannot be used online (%s); the run is kept in %s/wandb, send it later: "
            "wandb sync %s/wandb/offline-run-*",
            *(" ".join(str(error).split()) or type(error).__name__, self.save_dir, self.save_dir),
        )

    def _go_offline(self) -> None:
        self._offline = True
        self._wandb_init |= {"mode": "offline", "settings": self._limits(self.OFFLINE_SECONDS)}

    def _limits(self, start: float) -> dict[str, float]:
        return {"init_timeout": start, "finish_timeout": self.END_SECONDS}


def is_writer() -> bool:
    """Whether this is the one process that writes (global rank 0)."""
    return getattr(rank_zero_only, "rank", 0) == 0


def check_login() -> None:
    """Raise UsageError where W&B has no key; left to itself it would ask at a terminal."""
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise wandb.errors.UsageError("not logged in: `wandb login`")
