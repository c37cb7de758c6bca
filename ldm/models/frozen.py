"""The frozen base's own prediction, as what is to be predicted for class samples."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from ldm.models.adapters import Adapter, taken_out
from ldm.models.base import BaseModel
from ldm.models.modes import in_eval_mode
from ldm.models.text import TextEmbedding
from ldm.models.unet import predict


class FrozenPrediction:
    """What the untouched base predicts: knowledge kept by distillation (arXiv 1606.09282, eq. 2,
    with the squared error of diffusion in place of cross-entropy).

    Not an nn.Module, so whoever holds it neither trains nor saves nor moves its networks.
    """

    def __init__(self, base: BaseModel, adapters: Iterable[Adapter] = ()) -> None:
        """`base`: that which `adapters` are trained in, which are taken out for each prediction; or
        a `frozen_copy`. Of its parts the VAE is not used. Where a thread uses the copy at the same
        time, give this one tokenizers of its own.

        ValueError where its weights take gradients: then they are those being trained.
        """
        self.text, self.unet = base.text, base.unet
        self._adapters = tuple(adapters)
        with self._untouched():
            parts = base.networks.values()
            if any(weight.requires_grad for part in parts for weight in part.parameters()):
                raise ValueError("the base's weights take gradients: give a frozen_copy of it")
        self._embeddings: dict[str, TextEmbedding] = {}  # prompt -> [1, L, D]

    def to(self, device: str | torch.device) -> Self:
        """Move text encoders and UNet; prompts are encoded afresh there."""
        self.text.to(device)
        nn.Module.to(self.unet, device=device)  # diffusers' own warns for nothing
        self._embeddings.clear()
        return self

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Inside, the networks are the base's, in eval mode and without gradients (no inference
        mode: the loss keeps what they predict for its backward pass)."""
        with taken_out(self._adapters), in_eval_mode(self.unet, *self.text.encoders):
            yield

    def __call__(
        self, noisy: Tensor, t: Tensor, prompts: list[str], sizes: Tensor | None = None
    ) -> Tensor:
        """Predict from noisy latents [B, C, h, w], timesteps [B], B prompts, sizes [B, 6] (SDXL).

        What the result, [B, C, h, w], is, noise or velocity, is the base's prediction type; dtype
        is that of `noisy`. The UNet runs in its own dtype, under the caller's autocast.
        """
        with self._untouched():
            text = TextEmbedding.cat([self._embedding(prompt) for prompt in prompts])
            return predict(self.unet, noisy, t, text, sizes)

    def _embedding(self, prompt: str) -> TextEmbedding:
        """Embedding of each prompt alone, so that its value does not depend on its company."""
        if prompt not in self._embeddings:
            self.text.to(self.unet.device)  # where it has been put aside
            self._embeddings[prompt] = self.text.encode([prompt], self.unet.device)
        return self._embeddings[prompt]
