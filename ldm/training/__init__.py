"""Training: the Lightning module, its optimizer, and what happens around its steps."""

from ldm.training.aside import Aside
from ldm.training.average import Average
from ldm.training.callbacks import Interrupt, Interrupted, ResumeState, Snapshots
from ldm.training.compiled import CompiledBlocks
from ldm.training.evaluation import Evaluations
from ldm.training.metrics import Metrics
from ldm.training.module import DreamBoothModule
from ldm.training.optim import OptimizerSettings, hints, make_optimizer, weights_to_look_at
from ldm.training.phases import Phases, annealed
from ldm.training.profile import Profile
from ldm.training.progress import TrainingProgress
from ldm.training.samples import SampleGrid
from ldm.training.trainer import make_trainer

__all__ = [
    "Aside",
    "Average",
    "CompiledBlocks",
    "DreamBoothModule",
    "Evaluations",
    "Interrupt",
    "Interrupted",
    "Metrics",
    "OptimizerSettings",
    "Phases",
    "Profile",
    "ResumeState",
    "SampleGrid",
    "Snapshots",
    "TrainingProgress",
    "annealed",
    "hints",
    "make_optimizer",
    "make_trainer",
    "weights_to_look_at",
]
