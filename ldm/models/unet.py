"""One prediction of the UNet."""

from typing import TYPE_CHECKING

from torch import Tensor

from ldm.models.text import TextEmbedding

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def predict(
    unet: "UNet2DConditionModel",
    noisy: Tensor,
    t: Tensor | float,
    text: TextEmbedding,
    sizes: Tensor | None,
) -> Tensor:
    """Predict from noisy latents [N, C, h, w] at t ([N], or one for all) -> [N, C, h, w].

    sizes [N, 6]: see `ldm.data.sizes`. Pooled text and sizes are read where `text` has the former,
    by SDXL (arXiv 2307.01952, section 2.2); else `sizes` may be None. The UNet works in its own
    dtype, or the caller's autocast; the result has the dtype of `noisy`.
    """
    dtype = unet.dtype
    text = text.to(dtype)
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": sizes}
    prediction: Tensor = unet(
        noisy.to(dtype),
        t,
        encoder_hidden_states=text.states,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return prediction.to(noisy.dtype)
