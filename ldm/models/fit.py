"""Whether the parts of a loaded base belong to one another."""

from pathlib import Path
from typing import TYPE_CHECKING

from ldm.data.sizes import SIZES
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.models.base import BaseModel


def check_fit(base: "BaseModel", folder: Path) -> None:
    """Raise UserError where the parts cannot belong to one another."""
    unet, encoders = base.unet.config, base.text.encoders
    width = sum(encoder.config.hidden_size for encoder in encoders)
    if unet.cross_attention_dim != width:
        raise UserError(
            f"base model {folder}: the UNet reads text of width {unet.cross_attention_dim}, "
            f"its text encoders write {width}"
        )
    if unet.in_channels != base.latent_channels:
        raise UserError(
            f"base model {folder}: the UNet takes {unet.in_channels} channels and the VAE gives "
            f"{base.latent_channels}"
        )
    for tokenizer, encoder in zip(base.text.tokenizers, encoders, strict=True):
        if len(tokenizer) > encoder.config.vocab_size:
            raise UserError(
                f"base model {folder}: a tokenizer has {len(tokenizer)} tokens, its text encoder "
                f"{encoder.config.vocab_size}"
            )
    if base.text_encoder_2 is not None:
        _check_sdxl_fit(base, folder)
    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"base model {folder}: scheduler prediction_type {base.prediction_type!r} is not "
            "supported; epsilon and v_prediction are"
        )


def _check_sdxl_fit(base: "BaseModel", folder: Path) -> None:
    """Raise UserError where the two tokenizers, or pooled text and sizes, do not fit."""
    lengths = [tokenizer.model_max_length for tokenizer in base.text.tokenizers]
    if len(set(lengths)) > 1:
        raise UserError(f"base model {folder}: its tokenizers cut at {lengths} tokens, not at one")
    unet, second = base.unet.config, base.text.encoders[1].config
    written = second.projection_dim + SIZES * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != written:
        raise UserError(
            f"base model {folder}: the UNet reads pooled text and sizes of width "
            f"{unet.projection_class_embeddings_input_dim}, not {written}"
        )
