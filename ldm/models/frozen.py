"""The frozen base's own prediction, as what is to be predicted for class samples."""

from typing import Self

import torch
from torch import Tensor, nn

from ldm.models.base import BaseModel
from ldm.models.text import encode_prompts


class FrozenPrediction:
    """What the untouched base predicts: knowledge kept by distillation (arXiv 1606.09282, eq. 2,
    with the squared error of diffusion in place of cross-entropy).

    Not an nn.Module, so whoever holds it neither trains nor saves nor moves its networks.
    """

    def __init__(self, base: BaseModel) -> None:
        """`base`: a `frozen_copy`; of its parts the VAE is not used. Where a thread uses the copy
        at the same time, give this one a tokenizer of its own.

        ValueError where its weights take gradients: then they are those being trained.
        """
        parts: tuple[nn.Module, ...] = (base.text_encoder, base.unet)
        if any(weight.requires_grad for part in parts for weight in part.parameters()):
            raise ValueError("the base's weights take gradients: give a frozen_copy of it")
        self.tokenizer, self.text_encoder, self.unet = base.tokenizer, base.text_encoder, base.unet
        for part in parts:
            part.eval()
        self._embeddings: dict[str, Tensor] = {}  # prompt -> [L, D]

    def to(self, device: str | torch.device) -> Self:
        """Move text encoder and UNet; prompts are encoded afresh there."""
        for part in (self.text_encoder, self.unet):
            nn.Module.to(part, device=device)  # diffusers' own warns for nothing
        self._embeddings.clear()
        return self

    @torch.no_grad()  # not inference_mode: the loss keeps the result for its backward pass
    def __call__(self, noisy: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        """Predict from noisy latents [B, C, h, w], timesteps [B] and B prompts -> [B, C, h, w].

        What it is, noise or velocity, is the base's prediction type; dtype is that of `noisy`.
        The UNet runs in its own dtype, under the caller's autocast.
        """
        text = torch.stack([self._embedding(prompt) for prompt in prompts])  # [B, L, D]
        dtype = self.unet.dtype
        prediction = self.unet(noisy.to(dtype), t, encoder_hidden_states=text.to(dtype)).sample
        return prediction.to(noisy.dtype)

    def _embedding(self, prompt: str) -> Tensor:
        """Embedding [L, D]; each prompt alone, so that its value does not depend on its company."""
        if prompt not in self._embeddings:
            encoded = encode_prompts(self.tokenizer, self.text_encoder, [prompt], self.unet.device)
            self._embeddings[prompt] = encoded[0]
        return self._embeddings[prompt]
