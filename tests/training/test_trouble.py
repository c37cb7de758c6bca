"""A full disk and failing loggers in the middle of training: it goes on and loses nothing."""

import csv
import errno
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from ldm.errors import UserError
from ldm.training import SampleGrid
from ldm.training.loggers import Guarded
from ldm.training.metrics import COLUMNS, append, keep_rows
from tests.training.job import train

BaseFolder = Callable[[str], Path]
FULL = Path("/dev/full")

needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def steps_of(run: Path) -> list[int]:
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


class Fill(pl.Callback):
    """Puts a device without room in the place of a file after one step, the file back later."""

    def __init__(self, path: Path, after: int, until: int | None = None) -> None:
        self.path, self.aside = path, path.with_suffix(".aside")
        self.after, self.until = after, until

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.after and not self.aside.exists():
            os.link(
                self.path, self.aside
            )  # the path is never without a file: another thread writes
            link = self.path.with_suffix(".full")
            link.symlink_to(FULL)
            link.replace(self.path)
        if trainer.global_step == self.until and self.aside.exists():
            self.empty()

    def empty(self) -> None:
        self.aside.replace(self.path)


# --- metrics.csv ----------------------------------------------------------------------------------


@needs_full_device
def test_rows_wait_for_room(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill = Fill(tmp_path / "metrics.csv", after=1, until=4)
    _, trainer, _ = train(tmp_path, tiny_base_folder("eps"), 6, accumulate=1, extra=(fill,))
    assert trainer.global_step == 6
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    said = [text for text in caplog.messages if "metrics.csv" in text]
    assert len(said) == 1 and "No space left" in said[0] and "training goes on" in said[0]


@needs_full_device
def test_rows_wait_in_the_resume_state_too(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, fill = tiny_base_folder("eps"), Fill(tmp_path / "metrics.csv", after=1)
    train(tmp_path, base, 3, accumulate=1, extra=(fill,))
    assert "metrics.csv lacks the rows of steps 2 to 3" in caplog.text
    fill.empty()
    assert steps_of(tmp_path) == [1]
    train(tmp_path, base, 5, accumulate=1, resume=True)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


def test_rows_that_were_written_after_all_are_not_doubled(tmp_path: Path) -> None:
    path, rows = tmp_path / "metrics.csv", [f"{n}" + ",0.5" * (len(COLUMNS) - 1) for n in range(6)]
    keep_rows(path, 0)
    append(path, "\r\n".join([*rows[1:3], ""]).encode())
    keep_rows(path, 4, "\r\n".join([*rows[2:6], "4,0."]))
    assert path.read_text().split() == [",".join(COLUMNS), *rows[1:5]]


def test_a_line_that_only_half_fits_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\r\n")
    if not (child := os.fork()):
        # A limit on the size of files stands for a disk that has room for a part of the line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))
        try:
            append(path, b"1,0.25\r\n")
            os._exit(1)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG else 2)
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == b"step,loss\r\n"


def test_no_room_at_the_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    keep_rows(path, 0)
    before = path.read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(UserError, match="metrics.csv.*No space left.*free some space"):
        keep_rows(path, 0)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- loggers --------------------------------------------------------------------------------------


class Failing(CSVLogger):
    """Fails from the `good`-th call of `where` on, as a service would that goes away."""

    def __init__(self, folder: Path, where: str, good: int = 0) -> None:
        super().__init__(folder)
        self.where, self.good, self.calls = where, good, 0

    def _count(self, where: str) -> None:
        self.calls += 1
        if where == self.where:
            self.good -= 1
            if self.good < 0:
                raise ConnectionError("out of reach")

    @property
    def experiment(self) -> Any:
        self._count("experiment")
        return super().experiment

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._count("log_metrics")

    def save(self) -> None:
        self._count("save")

    def finalize(self, status: str) -> None:
        self._count("finalize")


@pytest.mark.parametrize("where", ["experiment", "log_metrics", "save", "finalize"])
def test_a_logger_that_fails_is_dropped(
    where: str, tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, whole = Failing(tmp_path / "a", where), Failing(tmp_path / "b", "nowhere")
    loggers: list[Logger] = [failing, whole]
    _, trainer, _ = train(tmp_path, tiny_base_folder("eps"), 2, loggers=loggers)
    assert trainer.global_step == 2 and steps_of(tmp_path) == [1, 2]
    said = [text for text in caplog.messages if "Failing" in text]
    assert len(said) == 1 and "ConnectionError: out of reach" in said[0]
    assert whole.calls > failing.calls or where == "finalize", "nothing more is passed on"


@needs_full_device
def test_tensorboard_on_a_full_disk(
    tiny_base_folder: BaseFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its thread meets the disk, and tells of it at the next call."""
    board = TensorBoardLogger(tmp_path, name="", version="", flush_secs=0)
    grid = SampleGrid(tmp_path, 1, lambda device: Image.new("RGB", (32, 16)), {"prompts": []})

    class FillEvents(Fill):
        def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
            (self.path,) = tmp_path.glob("events.out.tfevents.*")
            self.aside = self.path.with_name("aside")

    monkeypatch.setattr("threading.excepthook", lambda details: None)  # the writer thread's end
    fill = FillEvents(tmp_path, after=2)
    _, trainer, _ = train(
        tmp_path, tiny_base_folder("eps"), 6, accumulate=1, loggers=[board], extra=(fill, grid)
    )
    assert trainer.global_step == 6 and steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    said = [text for text in caplog.messages if text.startswith("TensorBoard failed")]
    assert len(said) == 1 and "No space left" in said[0]


class Broken:
    """A TensorBoard writer whose disk is full, as its methods tell of it."""

    def add_scalar(self, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    add_image = add_scalar


@pytest.mark.parametrize("what", ["metrics", "picture"])
def test_the_warning_names_logger_and_cause(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lightning hides what went wrong with a number behind an error of its own."""
    inner = TensorBoardLogger(tmp_path)
    vars(inner)["_experiment"] = Broken()
    guarded = Guarded(inner)
    for step in (1, 2):
        if what == "metrics":
            guarded.log_metrics({"loss": 1.0}, step)
        else:
            guarded.log_picture("samples", Image.new("RGB", (8, 8)), step)
    (said,) = caplog.messages
    assert said.startswith("TensorBoard failed") and "OSError: [Errno 28]" in said


def test_a_guarded_logger_passes_everything_on(tmp_path: Path) -> None:
    inner = TensorBoardLogger(tmp_path, name="", version="x")
    guarded = Guarded(inner)
    assert guarded.experiment is inner.experiment
    assert (guarded.name, guarded.version, guarded.log_dir) == ("", "x", inner.log_dir)
    assert guarded.save_dir == inner.save_dir
    guarded.log_hyperparams({"a": 1})
    assert inner.hparams == {"a": 1}


# --- grids ----------------------------------------------------------------------------------------


def test_a_full_disk_costs_a_grid_and_not_the_run(
    tiny_base_folder: BaseFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def draw(device: torch.device) -> Image.Image:
        return Image.new("RGB", (32, 16))

    save, saved = Image.Image.save, []

    def save_until_full(picture: Image.Image, path: Path, **options: Any) -> None:
        saved.append(path)
        save(picture, path, **options)
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with caplog.at_level(logging.ERROR):
        grid = SampleGrid(tmp_path, 1, draw, {"prompts": []})
        _, trainer, _ = train(tmp_path, tiny_base_folder("eps"), 2, extra=(grid,))
    assert trainer.global_step == 2
    assert "no sample grid at step 1" in caplog.text and "No space left" in caplog.text
    assert "Traceback" not in caplog.text
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-000000.png", "step-000002.png"], "and no half of one"


def test_a_resumed_run_goes_on_without_its_first_grid(
    tiny_base_folder: BaseFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(device: torch.device) -> Image.Image:
        raise RuntimeError("no font")

    train(tmp_path, tiny_base_folder("eps"), 2)
    grid = SampleGrid(tmp_path, 1, fail, {"prompts": []})
    _, trainer, _ = train(tmp_path, tiny_base_folder("eps"), 3, resume=True, extra=(grid,))
    assert trainer.global_step == 3 and "no sample grid at step 3" in caplog.text
