"""One guided prediction of the UNet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.text import TextEmbedding
from ldm.models.unet import predict

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class Guidance:
    """How strong guidance is, and at which noise levels it acts. UserError: impossible values."""

    scale: float
    rescale: float = 0.0  # see `rescaled`
    # Only where low < sigma <= high (arXiv 2404.07724, eq. 5), sigma being the noise's deviation
    # beside an image's of one; elsewhere the prompt's prediction stands alone, for half the work.
    interval: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise UserError(f"guidance scale: {self.scale} is negative; 1 is none, 5 to 8 is usual")
        if not 0 <= self.rescale <= 1:
            raise UserError(f"guidance rescale: {self.rescale} is not within 0 to 1")
        if self.interval is not None:
            low, high = self.interval
            if not 0 <= low < high:
                raise UserError(
                    f"guidance interval: {low} to {high} is none; as 0.3 to 5, of noise levels "
                    "from 0 to about 15"
                )

    def scale_at(self, t: Tensor, alphas_cumprod: Tensor) -> float:
        """The scale at a timestep; 1: no guidance. alphas_cumprod: of all, the image's variance."""
        if self.interval is None:
            return self.scale  # without waiting for the device
        alpha_cumprod = float(alphas_cumprod[round(float(t))])
        low, high = self.interval
        sigma = (1 / alpha_cumprod - 1) ** 0.5 if alpha_cumprod else math.inf
        return self.scale if low < sigma <= high else 1.0


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
