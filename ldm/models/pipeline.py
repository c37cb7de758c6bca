"""A base model as the library's pipeline: for what its readers and writers alone know."""

from typing import Any

from ldm.models.base import BaseModel


def pipeline_of(base: BaseModel) -> Any:
    """The parts, which are shared, as diffusers' pipeline for them."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts: dict[str, Any] = {
        "tokenizer": base.tokenizer,
        **base.networks,
        "vae": base.vae,
        "scheduler": base.scheduler,
    }
    if base.text_encoder_2 is None:
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer_2=base.tokenizer_2,
        force_zeros_for_empty_prompt=base.zero_empty_prompt,
        add_watermarker=False,
    )
