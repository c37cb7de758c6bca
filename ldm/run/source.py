"""What pictures are drawn with: a run's snapshot, or a model as it is."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ldm.config import Sampling
from ldm.errors import UserError
from ldm.export import read_about
from ldm.models.adapters import exactly_mergeable
from ldm.models.base import BaseModel
from ldm.models.choices import Choices
from ldm.run.settings import as_trained, weights_of
from ldm.run.subjects import identifiers_of
from ldm.run.trained import load_model, load_trained


@dataclass
class Source:
    """A model on the CPU, and what its prompts and pictures are called."""

    base: BaseModel
    identifiers: list[str]  # what [V], [V2], ... stand for
    defaults: Sampling
    resolution: int  # pixels
    out: Path  # a new folder for its pictures
    provenance: dict[str, Any]  # model, fingerprint, run, snapshot


def source_of_run(
    run: Path, which: str, ema: bool, dtype: torch.dtype, share: float = 1.0
) -> Source:
    """A run's base with a snapshot's weights in it: "best", "last" or a step. ema: their average.

    share: how much of what its adapters learnt. UserError: no run, no such snapshot, a base that it
    does not fit, a share of no adapters or of such as cannot be merged.
    """
    trained = load_trained(run, which, dtype, ema)
    config, base, path, manifest = trained.config, trained.base, trained.snapshot, trained.manifest
    mergeable = exactly_mergeable(trained.adapters)
    if share != 1 and (not mergeable or len(mergeable) < len(trained.adapters)):
        raise UserError(
            f"--adapter-weight {share:g}: {run} has no adapter that can be weighted; it trained "
            "all weights, or a rank that depends on the timestep"
        )
    for adapter in mergeable.values():
        adapter.merge(share)
    base.to("cpu", dtype)
    provenance = {
        "model": f"{run.resolve().name} {path.name}" + (" EMA" if ema else ""),
        "fingerprint": fingerprint_of(manifest, base.fingerprint, ema, share),
        "ema": ema,
        "base": base.source,
        "base_fingerprint": base.fingerprint,
        "snapshot": manifest["step"],
        "clip_skip": base.reading.clip_skip,
    }
    return Source(
        as_trained(config, base),
        identifiers_of(config),
        config.sampling,
        config.data.resolution or base.default_resolution,
        run / "samples" / f"{path.name}_{_now()}",
        provenance,
    )


def fingerprint_of(
    manifest: Mapping[str, Any], base_fingerprint: str, ema: bool, share: float = 1.0
) -> str:
    """What a snapshot's weights are known by, as much of its adapters as is merged."""
    own = weights_of(manifest, base_fingerprint, ema)
    return own if share == 1 else hashlib.sha256(f"{own} {share}".encode()).hexdigest()


def source_of_model(
    model: str, choices: Choices, loras: Sequence[tuple[Path, float]], dtype: torch.dtype
) -> Source:
    """A folder, hub id or single file, with LoRA files added times their weights.

    One that was exported here says what [V] stands for. UserError: what cannot be loaded.
    """
    base = load_model(model, choices, loras, dtype)
    told = read_about(model).get("identifier")
    provenance: dict[str, Any] = {"model": base.source, "fingerprint": base.fingerprint}
    provenance["clip_skip"] = base.reading.clip_skip
    if loras:
        provenance["lora"] = [f"{path}:{weight}" for path, weight in loras]
    out = Path("logs") / "samples" / _now()
    identifiers = [told] if told else []
    return Source(base, identifiers, Sampling(), base.default_resolution, out, provenance)


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
