"""Which implementation of attention the UNet uses."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

SHORT = 256  # tokens up to which the matrix of weights is small


def choose_attention(unet: "UNet2DConditionModel", device: torch.device, tokens: int) -> None:
    """Use written-out attention on a CPU with few tokens (latents a picture), else PyTorch's.

    On CPUs the backward pass of PyTorch's fused attention is slow on short sequences. On long ones
    it saves memory that grows with the square of the length.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    short = device.type == "cpu" and tokens <= SHORT
    unet.set_attn_processor(AttnProcessor() if short else AttnProcessor2_0())
