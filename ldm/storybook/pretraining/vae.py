"""The autoencoder, from rendered pictures in the world's colours and in any other;
then its decoder alone, which sharpens pictures and leaves latents as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ldm.models.precision import autocast, native_precision
from ldm.storybook.pretraining.loop import Loop, LoopSettings
from ldm.storybook.pretraining.pool import Pool

CROP = 32  # convolutions are local, so crops cost a quarter and vary more
KL_WEIGHT = 1e-5
GRADIENT_WEIGHT = 1.0
RECOLOURED = 0.25  # share of pictures in colours from outside the world


def new_vae(channels: list[int], latent_channels: int) -> AutoencoderKL:
    """An autoencoder of factor 2 ** (levels - 1) that starts with a narrow posterior."""
    levels = len(channels)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    # A posterior that starts at unit deviation drowns the signal: start at exp(-3) instead.
    with torch.no_grad():
        vae.quant_conv.bias[latent_channels:] = -6.0
    return vae


def to_unit(pictures: np.ndarray) -> Tensor:
    """NHWC, uint8 -> NCHW, float32 in [-1, 1]."""
    return rearrange(torch.from_numpy(pictures), "n h w c -> n c h w").float() / 127.5 - 1


def recolour(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Colours from outside the world for some pictures: mixed, inverted, faded channels."""
    n = len(pictures)
    mix = np.tile(np.eye(3, dtype=np.float32), (n, 1, 1))
    shift = np.zeros((n, 3), dtype=np.float32)
    for i in np.flatnonzero(rng.random(n) < RECOLOURED):
        sign = np.where(rng.random(3) < 0.3, -1.0, 1.0)
        blend = 0.7 * np.eye(3)[rng.permutation(3)] + 0.3 * rng.dirichlet(np.ones(3), 3)
        mix[i] = blend * sign[:, None] * rng.uniform(0.6, 1.0)
        shift[i] = rng.uniform(-0.2, 0.2, 3)
    mixed = torch.einsum("ncd,ndhw->nchw", torch.from_numpy(mix), pictures)
    return (mixed + torch.from_numpy(shift)[:, :, None, None]).clamp(-1, 1)


def picture_batch(pool: Pool, size: int, rng: np.random.Generator, crop: int = CROP) -> Tensor:
    """`size` random crops, mirrored and recoloured: size x 3 x crop x crop in [-1, 1]."""
    rows = rng.integers(len(pool.pictures), size=size)
    edge = pool.pictures.shape[1] - crop
    tops, lefts = rng.integers(edge + 1, size=size), rng.integers(edge + 1, size=size)
    crops = np.stack(
        [
            pool.pictures[row, top : top + crop, left : left + crop]
            for row, top, left in zip(rows, tops, lefts, strict=True)
        ]
    )
    batch = recolour(to_unit(crops), rng)
    return batch.flip(3) if rng.random() < 0.5 else batch


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, dict[str, float]]:
    """L1 on values and on their slopes (small marks stay sharp) and a little KL."""
    with autocast(pictures.device, native_precision(pictures.device.type)):
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    decoded = decoded.float()
    values = l1_loss(decoded, pictures)
    pairs = zip(_slopes(decoded), _slopes(pictures), strict=True)
    slopes = torch.stack([l1_loss(a, b) for a, b in pairs]).sum()
    kl = posterior.kl().float().mean()  # of a crop, in nats
    loss = values + GRADIENT_WEIGHT * slopes + KL_WEIGHT * kl
    return loss, {"l1": values.item(), "slopes": slopes.item(), "kl": kl.item()}


def train_vae(
    vae: AutoencoderKL, pool: Pool, settings: LoopSettings, batch: int, seed: int, state: Path
) -> AutoencoderKL:
    """Train `vae` and return it with the averaged weights and `scaling_factor` set to 1 / std."""
    loop = Loop(vae, settings, state)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(seed + step)  # the posterior's sample
        return vae_loss(vae, picture_batch(pool, batch, np.random.default_rng([seed, step])))

    vae.train()
    loop.run(loss_at)
    loop.load_average()
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(to_unit(pool.pictures[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
    return vae


def train_decoder(
    vae: AutoencoderKL, pool: Pool, settings: LoopSettings, batch: int, seed: int, state: Path
) -> AutoencoderKL:
    """Train the decoder of `vae` on, with the encoder frozen, and return it averaged.

    On whole pictures, whose statistics in group normalisation are not those of crops; `batch` is
    in crops, as that of `train_vae`.
    """
    whole = pool.pictures.shape[1]
    count = max(1, batch * CROP**2 // whole**2)
    vae.requires_grad_(False)
    decoding = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    loop = Loop(decoding.requires_grad_(True), settings, state)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(seed + step)  # the posterior's sample
        rng = np.random.default_rng([seed, step, 2])
        return vae_loss(vae, picture_batch(pool, count, rng, crop=whole))

    decoding.train()
    loop.run(loss_at)
    loop.load_average()
    return vae.eval().requires_grad_(False)
