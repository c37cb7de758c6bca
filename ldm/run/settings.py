"""What a run samples with: its prompts, the section `sampling`, what a grid says of itself."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm.config import Config
from ldm.data.prompts import fill_all
from ldm.models.base import BaseModel
from ldm.run.subjects import identifiers_of
from ldm.sampling.samplers import from_pure_noise


def filled(config: Config, templates: list[str]) -> list[str]:
    """Prompts with the identifiers in the places of [V], [V2], ..."""
    return [fill_all(template, identifiers_of(config)) for template in templates]


def sampling_settings(config: Config, resolution: int) -> dict[str, Any]:
    """`generate`'s keyword arguments from the section `sampling`; resolution in pixels."""
    (negative,) = filled(config, [config.sampling.negative])
    own = {"negative": negative, "height": resolution, "width": resolution}
    return asdict(config.sampling) | own


def grid_seeds(config: Config) -> list[int]:
    """The seeds of each row of a grid, one a picture."""
    return [config.samples.seed + place for place in range(config.samples.count)]


def grid_settings(config: Config, base: BaseModel, resolution: int, run: Path) -> dict[str, Any]:
    """The provenance of a run's sample grids, for `png_info`; all but the step."""
    prompts = filled(config, config.samples.prompts)
    return {
        "prompt": "\n".join(prompts),
        "prompts": prompts,
        "seeds": grid_seeds(config),
        **sampling_settings(config, resolution),
        "vae": config.samples.vae,  # None: the model's own
        "model": run.resolve().name,
        "base": base.source,
        "base_fingerprint": base.fingerprint,
        "clip_skip": base.reading.clip_skip,
    }


def weights_of(manifest: Mapping[str, Any], base_fingerprint: str, ema: bool = False) -> str:
    """What the weights of a base are known by once a snapshot is loaded into it."""
    hashes = sorted(file["sha256"] for file in manifest["files"].values())
    text = f"{base_fingerprint} {hashes}" + (" EMA" if ema else "")
    return hashlib.sha256(text.encode()).hexdigest()


def as_trained(config: Config, base: BaseModel) -> BaseModel:
    """The same networks with the noise schedule that they are trained for."""
    if not config.objective.zero_terminal_snr:
        return base
    return replace(base, scheduler=from_pure_noise(base.scheduler))
