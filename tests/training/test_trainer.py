"""The Trainer under a foreign environment: SLURM's variables, a RANK that is not ours."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from ldm.training import make_trainer
from tests.training.job import train
from tests.workspace import Workspace

MAIN = Path(__file__).parents[2] / "main.py"
SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "dreambooth",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)


class Handler(pl.Callback):
    """Notes what a signal would do in the midst of training."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.found = signal.getsignal(signal.SIGUSR1)


def cluster(folder: Path) -> Any:
    hardware = {"accelerator": "cpu", "devices": 1}
    trainer = make_trainer(folder, 1, callbacks=[], hardware=hardware)
    return trainer._accelerator_connector.cluster_environment


def test_slurm_requeues_nothing(
    slurm: None, tmp_path: Path, tiny_base_folder: Callable[[str], Path]
) -> None:
    """Lightning's handler would queue the first command once more, and leave a state of its own."""
    handler = Handler()
    train(tmp_path, tiny_base_folder("eps"), 1, extra=(handler,))
    assert handler.found is signal.SIG_DFL
    assert type(cluster(tmp_path)) is SLURMEnvironment


@pytest.mark.parametrize(
    ("name", "value"), [("SLURM_JOB_NAME", "interactive"), ("TORCHELASTIC_RUN_ID", "1")]
)
def test_slurm_is_left_alone_where_lightning_takes_another(
    name: str, value: str, slurm: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    assert not isinstance(cluster(tmp_path), SLURMEnvironment)


def test_a_single_process_draws_its_curves_whatever_rank_is_set(
    tmp_path: Path, tiny_base_folder: Callable[[str], Path]
) -> None:
    place = Workspace(tmp_path, tiny_base_folder("eps"))
    words = place.words("--name", "ranked", prior="null", training__steps=1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "1"}
    made = subprocess.run(
        [sys.executable, str(MAIN), *words], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    (run,) = place.logs.glob("*_ranked")
    assert list(run.glob("events.out.tfevents.*"))
