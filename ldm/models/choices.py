"""What a user takes in place of a base model's own."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ldm.errors import UserError
from ldm.models.vae import fingerprint_of_vae, load_vae

if TYPE_CHECKING:
    from ldm.models.base import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """None, or False: the base's own. The names are those of the configuration's `model.`.

    tokenizer: folder or hub id, for single files, which hold none. prediction_type: "epsilon" or
    "v_prediction". ema: a single file's averaged weights. vae: folder, hub id or file.
    """

    tokenizer: str | None = None
    prediction_type: str | None = None
    ema: bool = False
    vae: str | None = None

    def check_for_folder(self, source: str | Path) -> None:
        """UserError for what only a single file can be given."""
        if self.tokenizer is not None:
            raise UserError(
                f"model.tokenizer={self.tokenizer}: for single files, which hold none; {source} "
                "brings its own: leave it out"
            )
        if self.ema:
            raise UserError(
                f"model.ema=true: for single files with averaged weights beside the ordinary ones; "
                f"{source} is none: leave it false"
            )


OWN = Choices()


def with_choices(base: "BaseModel", choices: Choices) -> "BaseModel":
    """The same model with what was chosen; its fingerprint says so. UserError: what does not fit.

    The base is not to be used afterwards.
    """
    wanted = choices.prediction_type
    if wanted is not None and wanted != base.prediction_type:
        log.warning(
            "model.prediction_type=%s is used; %s says %s",
            *(wanted, base.source, base.prediction_type),
        )
        config = base.scheduler.config
        scheduler = type(base.scheduler).from_config(config, prediction_type=wanted)
        base = replace(base, scheduler=scheduler, fingerprint=_joined(base.fingerprint, wanted))
    if choices.vae is not None:
        vae = load_vae(choices.vae, base.vae)
        own = fingerprint_of_vae(vae)
        vae.to(memory_format=torch.channels_last)
        base = replace(
            base, vae=vae, vae_fingerprint=own, fingerprint=_joined(base.fingerprint, own)
        )
    return base


def _joined(*fingerprints: str) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
