"""Text encoder and UNet, from the pool's latents and captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.models.precision import autocast, native_precision
from ldm.models.text import TextEncoders
from ldm.objective import NoiseSchedule, loss_weight, per_sample_loss
from ldm.randomness import generator
from ldm.storybook.pretraining.loop import Loop, LoopSettings
from ldm.storybook.pretraining.pool import Pool
from ldm.storybook.pretraining.vae import to_unit

CPU = torch.device("cpu")
EMPTY_SHARE = 0.1  # captions dropped, so that guidance has an unconditional prediction


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels with v-prediction (arXiv 2202.00512).

    Trailing spacing, so that sampling starts at the noisiest level (arXiv 2305.08891, section 3.3).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """A small CLIP text transformer over the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(
    size: int, latent_channels: int, channels: list[int], width: int
) -> UNet2DConditionModel:
    """A UNet without attention at its first level, cross-attention to text below."""
    deeper = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * deeper,
        up_block_types=["CrossAttnUpBlock2D"] * deeper + ["UpBlock2D"],
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=[c // 32 for c in channels],
        norm_num_groups=16,
    )


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool, batch: int = 64) -> np.ndarray:
    """Posterior means and deviations, scaled: N x 2 x C x h x w, float16."""
    rows = []
    for start in range(0, len(pool.pictures), batch):
        pixels = to_unit(pool.pictures[start : start + batch])
        with autocast(CPU, native_precision("cpu")):
            posterior = vae.encode(pixels).latent_dist
        both = torch.stack([posterior.mean.float(), posterior.std.float()], dim=1)
        rows.append((both * vae.config.scaling_factor).half().numpy())
    return np.concatenate(rows)


def train_diffusion(
    tokenizer: CLIPTokenizer,
    networks: nn.ModuleDict,
    latents: np.ndarray,
    captions: list[list[str]],
    settings: LoopSettings,
    batch: int,
    min_snr_gamma: float,
    seed: int,
    state: Path,
    after: Callable[[int], None] | None = None,
) -> nn.ModuleDict:
    """Train `networks` ({"unet", "text_encoder"}) and return them with the averaged weights.

    Objective: v-prediction with min-SNR weights (arXiv 2303.09556) and 10 % empty captions.
    """
    schedule = NoiseSchedule.from_scheduler(new_scheduler())
    loop = Loop(networks, settings, state)
    encoders = TextEncoders((tokenizer,), (networks["text_encoder"],))

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(latents), size=batch)
        prompts = [captions[row][rng.integers(len(captions[row]))] for row in rows]
        dropped = rng.random(batch) < EMPTY_SHARE
        prompts = ["" if drop else text for drop, text in zip(dropped, prompts, strict=True)]
        mean, std = torch.from_numpy(latents[rows]).float().unbind(1)  # N2Chw -> 2 x NChw
        draw = generator(seed, "pretraining", step)
        clean = mean + std * torch.randn(mean.shape, generator=draw)
        noise = torch.randn(mean.shape, generator=draw)
        # Timesteps in equal strata: the same expectation as uniform draws, less variance.
        strata = (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch
        t = (strata * len(schedule)).long()
        with autocast(CPU, native_precision("cpu")):
            text = encoders.encode(prompts, "cpu").states
            predicted = networks["unet"](schedule.add_noise(clean, noise, t), t, text).sample
        errors = per_sample_loss(predicted, schedule.target(clean, noise, t))
        weight = loss_weight(
            schedule.snr(t), schedule.prediction_type, "min_snr", min_snr_gamma=min_snr_gamma
        )
        loss = (weight * errors).mean()
        return loss, {"loss": loss.item(), "mse": errors.mean().item()}

    networks.train()
    loop.run(loss_at, after)
    loop.load_average()
    return networks.eval().requires_grad_(False)
