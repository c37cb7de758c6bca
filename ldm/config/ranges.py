"""What values single keys may have."""

import math
from collections.abc import Iterator
from typing import Any

from ldm.config.schema import Config

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "model.clip_skip": 0,
    "model.prompt_chunks": 1,
    "adapter.rank": 1,
    "adapter.text_encoder_rank": 1,
    "adapter.dropout": 0,
    "adapter.timestep_rank": 1,
    "data.resolution": 8,
    "data.crops": 1,
    "prior.count": 1,
    "prior.batch": 1,
    "prior.weight": 0,
    "prior.weight_end": 0,
    "prior.uses": 1,
    "subject.weight": 0,
    "prior.seed": 0,
    "prior.scale": 0,
    "prior.steps": 1,
    "prior.sampling_batch": 1,
    "prior.caption_dropout": 0,
    "training.steps": 1,
    "training.batch": 1,
    "training.accumulate": 1,
    "training.weight_decay": 0,
    "training.warmup": 0,
    "training.text_encoder_stop": 0,
    "training.pivotal": 0,
    "objective.p2_gamma": 0,
    "objective.noise_offset": 0,
    "objective.pyramid_noise": 0,
    "objective.input_perturbation": 0,
    "objective.timestep_min": 0,
    "objective.timestep_max": 1,
    "objective.mask_outside": 0,
    "objective.caption_dropout": 0,
    "ema.decay": 0,
    "training.save_every": 1,
    "snapshots.every": 1,
    "snapshots.keep": 1,
    "sampling.steps": 1,
    "sampling.scale": 0,
    "sampling.rescale": 0,
    "sampling.batch": 1,
    "samples.every": 0,
    "samples.count": 1,
    "samples.seed": 0,
    "trainer.nodes": 1,
    "logger.artifact_gib": 0,
    "evaluation.images": 1,
    "evaluation.class_images": 2,
    "evaluation.unrelated_images": 1,
    "evaluation.seed": 0,
    "evaluation.steps": 1,
    "evaluation.every": 1,
    "evaluation.patience": 1,
}
MORE_THAN: dict[str, float] = {
    "adapter.alpha": 0,
    "adapter.text_encoder_alpha": 0,
    "adapter.timestep_rank_power": 0,
    "training.learning_rate": 0,
    "training.text_encoder_learning_rate": 0,
    "training.gradient_clip": 0,
    "training.pivotal_learning_rate": 0,
    "objective.huber_c": 0,
    "objective.min_snr_gamma": 0,
    "objective.p2_k": 0,
    "objective.logit_std": 0,
    "ema.power": 0,
}
AT_MOST: dict[str, float] = {
    "model.prompt_chunks": 8,
    "adapter.dropout": 0.99,
    "prior.caption_dropout": 1,
    "training.learning_rate": 1,
    "training.text_encoder_learning_rate": 1,
    "training.text_encoder_stop": 1,
    "training.pivotal": 1,
    "training.pivotal_learning_rate": 1,
    "objective.huber_c": 1,
    "objective.mask_outside": 1,
    "objective.caption_dropout": 1,
    "objective.pyramid_noise": 1,
    "ema.decay": 1,
    "sampling.rescale": 1,
}


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; None below a section that is None."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def range_problems(config: Config) -> Iterator[str]:
    """One line per number outside its range."""
    for key in sorted({*AT_LEAST, *MORE_THAN, *AT_MOST}):
        value = value_at(config, key)
        if value is None:
            continue
        if not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
        elif key in AT_LEAST and value < AT_LEAST[key]:
            yield f"{key}={value}: must be at least {AT_LEAST[key]}"
        elif key in MORE_THAN and value <= MORE_THAN[key]:
            yield f"{key}={value}: must be more than {MORE_THAN[key]}"
        elif key in AT_MOST and value > AT_MOST[key]:
            yield f"{key}={value}: must be at most {AT_MOST[key]}"
    for number, subject in enumerate(config.subjects):
        if not 0 <= subject.weight < math.inf:
            yield f"subjects[{number}].weight={subject.weight}: must be a number of at least 0"
    interval = config.sampling.guidance_interval
    if interval is not None and (len(interval) != 2 or not 0 <= interval[0] < interval[1]):
        yield f"sampling.guidance_interval={interval}: must be two noise levels, as [0.3, 5]"
    betas = config.training.betas
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        yield f"training.betas={betas}: must be two numbers from 0 up to, not including, 1"
