"""The original networks of Stable Diffusion, written out anew with the original's module names.

Nothing of diffusers, transformers or this package is used, so that a checkpoint which loads here
and gives the same numbers is in the original naming. After CompVis/stable-diffusion (openaimodel,
attention, model), mlfoundations/open_clip and Stability-AI/generative-models. True sizes by default
(`SIZES`), smaller ones in `TINY`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """One kind of model; lists are per level, from fine to coarse."""

    channels: int
    mult: tuple[int, ...]
    depth: tuple[int, ...]  # transformer blocks of an attention; 0: none
    heads: tuple[int, ...]
    context: int
    linear: bool  # projections of the transformers; else 1x1 convolutions
    text: tuple["Text", ...]
    label: int | None = None
    layers: int = 2
    groups: int = 32
    vae_channels: int = 128
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_layers: int = 2


@dataclass(frozen=True)
class Text:
    width: int
    layers: int
    heads: int
    open_clip: bool = False
    projection: int = 0
    words: int = 49408
    length: int = 77


CLIP_L = Text(768, 12, 12)
SIZES = {
    "sd1": Sizes(320, (1, 2, 4, 4), (1, 1, 1, 0), (8,) * 4, 768, False, (CLIP_L,)),
    "sd2": Sizes(
        *(320, (1, 2, 4, 4), (1, 1, 1, 0), (5, 10, 20, 20), 1024, True),
        (Text(1024, 24, 16, True, 1024),),
    ),
    "sdxl": Sizes(
        *(320, (1, 2, 4), (0, 2, 10), (5, 10, 20), 2048, True),
        (CLIP_L, Text(1280, 32, 20, True, 1280)),
        label=2816,
    ),
}


class ResBlock(nn.Module):
    def __init__(self, channels: int, embedding: int, out: int, groups: int) -> None:
        super().__init__()
        norm, conv = nn.GroupNorm(groups, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out))
        norm, conv = nn.GroupNorm(groups, out), nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(norm, nn.SiLU(), nn.Dropout(0), conv)
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            one.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for one in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Dropout(0), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, sizes: Sizes) -> None:
        super().__init__()
        self.linear = sizes.linear
        make: Any = nn.Linear if sizes.linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.norm = nn.GroupNorm(sizes.groups, width, eps=1e-6)
        self.proj_in = make(width, width)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(width, sizes.context, heads) for _ in range(depth)
        )
        self.proj_out = make(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        high, wide = x.shape[2:]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h w, C]
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, context)
        h = self.proj_out(h) if self.linear else h
        h = h.transpose(1, 2).unflatten(2, (high, wide))
        return x + (h if self.linear else self.proj_out(h))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Steps(nn.Sequential):
    """TimestepEmbedSequential: each layer gets what it takes."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """[B] -> [B, width], cosines first."""
    half = width // 2
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNetModel(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.channels, emb = sizes.channels, 4 * sizes.channels
        self.time_embed = nn.Sequential(
            nn.Linear(self.channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        if sizes.label:
            inner = nn.Sequential(nn.Linear(sizes.label, emb), nn.SiLU(), nn.Linear(emb, emb))
            self.label_emb = nn.Sequential(inner)

        def block(ch: int, out: int, level: int) -> list[nn.Module]:
            found: list[nn.Module] = [ResBlock(ch, emb, out, sizes.groups)]
            if sizes.depth[level]:
                found.append(SpatialTransformer(out, sizes.depth[level], sizes.heads[level], sizes))
            return found

        ch, last = self.channels, len(sizes.mult) - 1
        self.input_blocks = nn.ModuleList([Steps(nn.Conv2d(4, ch, 3, padding=1))])
        kept = [ch]
        for level, mult in enumerate(sizes.mult):
            for _ in range(sizes.layers):
                self.input_blocks.append(Steps(*block(ch, mult * self.channels, level)))
                ch = mult * self.channels
                kept.append(ch)
            if level != last:
                self.input_blocks.append(Steps(Downsample(ch)))
                kept.append(ch)
        middle = max(sizes.depth[-2:])
        self.middle_block = Steps(
            ResBlock(ch, emb, ch, sizes.groups),
            SpatialTransformer(ch, middle, sizes.heads[-1], sizes),
            ResBlock(ch, emb, ch, sizes.groups),
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed([*enumerate(sizes.mult)]):
            for layer in range(sizes.layers + 1):
                layers = block(ch + kept.pop(), mult * self.channels, level)
                ch = mult * self.channels
                if level and layer == sizes.layers:
                    layers.append(Upsample(ch))
                self.output_blocks.append(Steps(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(sizes.groups, ch), nn.SiLU(), nn.Conv2d(ch, 4, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.time_embed(sinusoidal(t, self.channels))
        emb = emb if y is None else emb + self.label_emb(y)
        kept = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            kept.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), emb, context)
        return self.out(x)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (one(h).flatten(2) for one in (self.q, self.k, self.v))  # [B, C, h w]
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class PaddedDownsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle_of(channels: int, groups: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels, groups),
            "attn_1": AttnBlock(channels, groups),
            "block_2": ResnetBlock(channels, channels, groups),
        }
    )


class Encoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        ch, last, groups = sizes.vae_channels, len(sizes.vae_mult) - 1, sizes.groups
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.levels: list[nn.ModuleDict] = []
        for level, mult in enumerate(sizes.vae_mult):
            blocks = nn.ModuleList()
            for _ in range(sizes.vae_layers):
                blocks.append(ResnetBlock(ch, mult * sizes.vae_channels, groups))
                ch = mult * sizes.vae_channels
            modules: dict[str, nn.Module] = {"block": blocks, "attn": nn.ModuleList()}
            if level != last:
                modules["downsample"] = PaddedDownsample(ch)
            self.levels.append(nn.ModuleDict(modules))
        self.down = nn.ModuleList(self.levels)
        self.mid = middle_of(ch, groups)
        self.norm_out = nn.GroupNorm(groups, ch, eps=1e-6)
        self.conv_out = nn.Conv2d(ch, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            for block in level["block"].children():
                x = block(x)
            x = level["downsample"](x) if "downsample" in level else x
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        groups, ch = sizes.groups, sizes.vae_channels * sizes.vae_mult[-1]
        self.conv_in = nn.Conv2d(4, ch, 3, padding=1)
        self.mid = middle_of(ch, groups)
        self.levels: list[nn.ModuleDict] = []
        for level, mult in reversed([*enumerate(sizes.vae_mult)]):
            blocks = nn.ModuleList()
            for _ in range(sizes.vae_layers + 1):
                blocks.append(ResnetBlock(ch, mult * sizes.vae_channels, groups))
                ch = mult * sizes.vae_channels
            modules: dict[str, nn.Module] = {"block": blocks, "attn": nn.ModuleList()}
            if level:
                modules["upsample"] = Upsample(ch)
            self.levels.insert(0, nn.ModuleDict(modules))
        self.up = nn.ModuleList(self.levels)
        self.norm_out = nn.GroupNorm(groups, ch, eps=1e-6)
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(self.levels):
            for block in level["block"].children():
                x = block(x)
            x = level["upsample"](x) if "upsample" in level else x
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, x: Tensor) -> Tensor:
        """The posterior's mean and log variance."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
