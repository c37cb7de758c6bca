"""What a user takes in place of a base model's own."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.models.layout import lay_out
from ldm.models.text import USUAL, Reading
from ldm.models.vae import fingerprint_of_vae, load_vae

if TYPE_CHECKING:
    from ldm.models.base import BaseModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """None, or False: the base's own. The names are those of the configuration's `model.`.

    tokenizer: folder or hub id, for single files, which hold none. prediction_type: "epsilon" or
    "v_prediction". ema: a single file's averaged weights. vae: folder, hub id or file. reading:
    `model.clip_skip` and `model.prompt_chunks`.
    """

    tokenizer: str | None = None
    prediction_type: str | None = None
    ema: bool = False
    vae: str | None = None
    reading: Reading = USUAL

    def with_told(self, about: Mapping[str, Any]) -> "Choices":
        """How a model was trained to read prompts, as an export says of itself; unless chosen."""
        if self.reading != USUAL or "reading" not in about:
            return self
        return replace(self, reading=Reading(**about["reading"]))

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
        lay_out(vae)
        base = replace(
            base, vae=vae, vae_fingerprint=own, fingerprint=_joined(base.fingerprint, own)
        )
    if choices.reading != USUAL:
        _check_layers(base, choices.reading)
        told = f"{choices.reading}"
        base = replace(base, reading=choices.reading, fingerprint=_joined(base.fingerprint, told))
    return base


def _check_layers(base: "BaseModel", reading: Reading) -> None:
    least = min(encoder.config.num_hidden_layers for encoder in base.text.encoders)
    if reading.clip_skip + len(base.text.encoders) > least:
        raise UserError(
            f"model.clip_skip={reading.clip_skip}: {base.source} has text encoders of {least} "
            "layers; 1 is usual where a model asks for clip skip 2"
        )


def _joined(*fingerprints: str) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
