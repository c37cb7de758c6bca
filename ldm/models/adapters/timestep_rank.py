"""T-LoRA: the noisier the input, the fewer of an adapter's components take part."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(eq=False)
class TimestepRank:
    """Of each sample the first r(t) of `rank` components of the UNet's LoRA; the others are zero.

    r(t) = floor(((T - t) / T)^power (rank - smallest)) + smallest, for t in [0, T): T-LoRA without
    its initialisation (arXiv 2507.05964). In training and in sampling alike; what is merged into
    plain weights has the whole rank at all timesteps.
    """

    rank: int
    smallest: int  # in [1, rank]
    power: float  # > 0
    timesteps: int  # T
    mask: Tensor | None = None  # [B or 1, rank], bool, of the pass that is computed

    def at(self, t: int) -> int:
        """r(t)."""
        share = ((self.timesteps - t) / self.timesteps) ** self.power
        return int(share * (self.rank - self.smallest)) + self.smallest

    @cached_property
    def last(self) -> list[int]:
        """Of each component the last timestep at which it takes part."""
        ranks = [self.at(t) for t in range(self.timesteps)]  # never rises
        return [sum(rank > place for rank in ranks) - 1 for place in range(self.rank)]

    def attach(self, unet: nn.Module, downs: Iterable[nn.Module]) -> None:
        """Mask what `downs`, the layers' factors with `rank` outputs, give within a pass."""
        unet.register_forward_pre_hook(self._begin)
        for down in downs:
            down.register_forward_hook(self._masked)

    def checkpoint(self, block: nn.Module, *inputs: Any) -> Any:
        """For `enable_gradient_checkpointing`: what is computed again has its own pass's mask.

        That happens in the backward pass, when another pass may have begun.
        """
        mask = self.mask

        def within_its_pass(*inputs: Any) -> Any:
            self.mask = mask
            return block(*inputs)

        return checkpoint(within_its_pass, *inputs, use_reentrant=False)

    def _begin(self, unet: nn.Module, inputs: tuple[Any, ...]) -> None:
        """At each call of the UNet, with t one number, [] or [B]."""
        noisy, t, *_ = inputs
        t = torch.as_tensor(t, device=noisy.device).reshape(-1, 1)
        self.mask = t <= torch.tensor(self.last, device=noisy.device)

    def _masked(self, down: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """[B, ..., rank] of a linear layer, [B, rank, h, w] of a convolution -> the same."""
        assert self.mask is not None, "a layer is called within the UNet alone"
        mask = self.mask
        if isinstance(down, nn.Conv2d):
            return output * mask[:, :, None, None]
        return output * mask.reshape(len(mask), *[1] * (output.ndim - 2), -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return replace(self, mask=None)  # the copy is in no pass
