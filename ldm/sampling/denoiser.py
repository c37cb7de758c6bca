"""One guided prediction of the UNet."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.models.text import TextEmbedding
from ldm.models.unet import predict

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def guided_prediction(
    unet: "UNet2DConditionModel",
    latents: Tensor,
    timestep: Tensor | float,
    cond: TextEmbedding,
    uncond: TextEmbedding | None,
    sizes: Tensor | None,
    scale: float,
    rescale: float = 0.0,
) -> Tensor:
    """Predict with classifier-free guidance, in one forward pass of the UNet.

    latents [N, C, h, w] (scaled as the scheduler wants model input), cond and uncond of N prompts,
    sizes [N, 6] (SDXL only; see `predict`) -> prediction [N, C, h, w] in the dtype of `latents`.
    At scale 1 the conditional prediction alone is computed, and `uncond` may be None.

    uncond + scale * (cond - uncond): arXiv 2207.12598, eq. 6, with scale = w + 1.
    """
    if scale == 1.0:
        return predict(unet, latents, timestep, cond, sizes)
    if uncond is None:
        raise ValueError(f"guidance scale {scale} needs the unconditional embedding")
    text = TextEmbedding.cat([uncond, cond])
    doubled = None if sizes is None else torch.cat([sizes, sizes])
    both = predict(unet, torch.cat([latents, latents]), timestep, text, doubled)
    without, with_prompt = both.chunk(2)  # [2N, C, h, w] -> 2 x [N, C, h, w]
    guided = without + scale * (with_prompt - without)
    return rescaled(guided, with_prompt, rescale) if rescale > 0 else guided


def rescaled(guided: Tensor, with_prompt: Tensor, rescale: float) -> Tensor:
    """Bring the deviation of each guided prediction back towards the conditional one's.

    0 <= rescale <= 1 mixes; 1 is all the way. arXiv 2305.08891, section 3.4, eq. 14-16.
    """
    axes = tuple(range(1, guided.ndim))
    factor = with_prompt.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (rescale * factor + (1 - rescale))
