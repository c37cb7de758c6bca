"""The training objective: what is predicted, how far off it is, and how much each sample counts.

Training, pretraining and the held-out loss all use these functions, so that their numbers compare.
"""

from ldm.objective.loss import combine, mean_of, per_sample_loss
from ldm.objective.schedule import NoiseSchedule

__all__ = ["NoiseSchedule", "combine", "mean_of", "per_sample_loss"]
