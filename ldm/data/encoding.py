"""One pass through the VAE: pictures to latents, and what to do where float16 is too small."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

Moments = tuple[Tensor, Tensor]  # mean and std, of one shape


@torch.no_grad()  # not inference_mode: the UNet's backward pass may keep what is made from these
def encode_pixels(
    vae: "AutoencoderKL", pixels: Tensor, device: torch.device | None = None
) -> Moments:
    """[B, 3, H, W] in [-1, 1] -> mean and std, [B, C, h, w] each, scaled, float32 on the CPU.

    In one forward pass, on the VAE's device (or where it is moved for that, `device`) and in its
    dtype; the result carries no gradient.
    Scaling as in arXiv 2112.10752, appendix G (`scaling_factor`): the latents then have about unit
    deviation. `shift_factor` is None in Stable Diffusion and there for later VAEs.
    Raises UserError where the result is not finite, in float32 too (see `without_overflow`).
    """

    def encoded() -> Moments:
        posterior = vae.encode(pixels.to(device or vae.device, vae.dtype)).latent_dist
        return posterior.mean, posterior.std

    mean, std = without_overflow(vae, encoded)
    scale = float(vae.config.scaling_factor)
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    mean = (mean.float().cpu() - shift) * scale
    std = std.float().cpu() * scale
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise UserError(
            f"the VAE makes NaN of a picture, in {vae.dtype}: its weights are damaged; "
            "fetch it again, or give another with model.vae"
        )
    return mean, std


def without_overflow(
    vae: nn.Module, work: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `work` computes with the VAE; once more in float32 where float16 is too small for it.

    float16 ends at 65504, and the activations of some VAEs (SDXL's) go beyond. The VAE then stays
    float32, which the log says, and `work` has to read its dtype. What is not finite in float32
    either is returned as it is.
    """
    made = work()
    finite = all(bool(tensor.isfinite().all()) for tensor in made)
    if finite or next(vae.parameters()).dtype != torch.float16:
        return made
    log.warning("the VAE overflows in float16: this is done again, and from here on, in float32")
    nn.Module.to(vae, dtype=torch.float32)  # diffusers' own warns for nothing
    return work()
