"""Training: the Lightning module, its optimizer, and what happens around its steps."""

from ldm.training.callbacks import Interrupt, Interrupted, ResumeState, Snapshots
from ldm.training.metrics import Metrics
from ldm.training.module import DreamBoothModule
from ldm.training.optim import OptimizerSettings
from ldm.training.progress import TrainingProgress
from ldm.training.samples import SampleGrid
from ldm.training.trainer import make_trainer

__all__ = [
    "DreamBoothModule",
    "Interrupt",
    "Interrupted",
    "Metrics",
    "OptimizerSettings",
    "ResumeState",
    "SampleGrid",
    "Snapshots",
    "TrainingProgress",
    "make_trainer",
]
