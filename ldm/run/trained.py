"""A finished or running run's model, with the weights of one of its snapshots."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.checkpoint.files import sha256_of
from ldm.checkpoint.snapshots import find_snapshot, load_snapshot
from ldm.config import Config
from ldm.errors import UserError
from ldm.export import read_about
from ldm.models.adapters import Adapter
from ldm.models.adapters.files import add_lora_files
from ldm.models.base import BaseModel, load_base
from ldm.models.choices import Choices
from ldm.models.quantised import Bits
from ldm.models.text import Reading
from ldm.models.trainable import prepare_training
from ldm.run.adapters import adapters_of
from ldm.run.device import autocast_dtype, precision_of
from ldm.run.folder import read_config, read_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a run made of its base. Where it trained adapters they are in it, and not merged."""

    config: Config
    base: BaseModel
    adapters: Mapping[str, Adapter]
    snapshot: Path
    manifest: Mapping[str, Any]


def load_model(
    source: str,
    choices: Choices,
    loras: Sequence[tuple[Path, float]] = (),
    dtype: torch.dtype = torch.float32,
) -> BaseModel:
    """A folder, hub id or single file, with LoRA files added times their weights.

    Its fingerprint is of all that. UserError: what cannot be loaded, or does not fit.
    """
    choices = choices.with_told(read_about(source))
    base = load_base(source, torch.float32 if loras else dtype, choices=choices)
    if not loras:
        return base
    add_lora_files(base, loras)
    added = [(sha256_of(path), weight) for path, weight in loras]
    known_by = hashlib.sha256(f"{base.fingerprint} {added}".encode()).hexdigest()
    return replace(base, fingerprint=known_by).to("cpu", dtype)


def base_dtype(config: Config) -> torch.dtype:
    """What type the base's weights have in a run. UserError: half precision on a device without."""
    training, frozen = config.training, config.adapter.frozen if config.adapter else "full"
    wanted, usual = f"adapter.frozen={frozen}", "adapter.frozen=full"
    if training.weights == "bf16":
        wanted, usual = "training.weights=bf16", "training.weights=fp32"
    elif frozen == "full":
        return torch.float32
    dtype = autocast_dtype(config)
    if dtype is None or (training.weights == "bf16" and dtype != torch.bfloat16):
        raise UserError(
            f"{wanted}: training.precision={training.precision} is {precision_of(config)} on this "
            f"device; set training.precision=bf16-mixed, or {usual}"
        )
    return dtype


def trained_dtype(config: Config) -> torch.dtype:
    """What type the weights that are trained have."""
    return torch.bfloat16 if config.training.weights == "bf16" else torch.float32


def set_to_train(
    config: Config, base: BaseModel, adapters: Mapping[str, Adapter]
) -> dict[str, nn.Module]:
    """Set what the configuration trains of a base, in place, and return it."""
    return prepare_training(
        base,
        config.model.train_text_encoder,
        config.model.gradient_checkpointing,
        embedding=config.training.pivotal > 0,
        adapters=adapters,
        dtype=trained_dtype(config),
    )


def frozen_bits(config: Config) -> Bits | None:
    """How few bits the linear layers of the base's weights have in a run; None: a type's own."""
    frozen = config.adapter.frozen if config.adapter else "full"
    return frozen if frozen in ("int8", "nf4") else None


def load_untouched(config: Config, dtype: torch.dtype = torch.float32) -> BaseModel:
    """The base that a configuration names, with what it takes in place of the base's own."""
    model = config.model
    reading = Reading(model.clip_skip, model.prompt_chunks)
    choices = Choices(model.tokenizer, model.prediction_type, model.ema, model.vae, reading)
    return load_base(model.base, dtype, model.revision, model.variant, choices)


def load_trained(
    run: Path, which: str = "best", dtype: torch.dtype = torch.float32, ema: bool = False
) -> Trained:
    """Load a run's base and put a snapshot ("best", "last" or a step) into it.

    dtype: of text encoders and UNet; where there are adapters, float32 whatever it is. UserError:
    no run, no such snapshot, a base that it does not fit.
    """
    config = read_config(run)
    path = find_snapshot(run, which)
    base = load_untouched(config, torch.float32 if config.adapter else dtype)
    if read_facts(run).get("base_fingerprint") not in (None, base.fingerprint):
        log.warning(
            "%s has changed since %s was trained on it: results may be wrong", base.source, run
        )
    adapters = adapters_of(config, base)
    manifest = load_snapshot(path, {**base.networks, **adapters}, ema=ema)
    return Trained(config, base, adapters, path, manifest)
