"""The stages in their order, each reading what the ones before it left in the work folder.

A stage that was interrupted goes on from its last saved step; one that is done is not done again.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.models.base import BaseModel, load_base
from ldm.sampling.generate import generate
from ldm.storybook import full_caption, random_scene
from ldm.storybook.oracle import StorybookOracle, packed, unpacked
from ldm.storybook.pretraining.diffusion import (
    encode_pool,
    new_scheduler,
    new_text_encoder,
    new_unet,
    train_diffusion,
)
from ldm.storybook.pretraining.identity import RIVALS, draw_gallery, find_threshold
from ldm.storybook.pretraining.lessons import draw_lesson
from ldm.storybook.pretraining.oracle import settle_none, train_oracle
from ldm.storybook.pretraining.pool import Pool, draw_pool, save_array
from ldm.storybook.pretraining.recognition import PER_FAMILY, seen_of, train_recognition
from ldm.storybook.pretraining.score import score_stage
from ldm.storybook.pretraining.settings import PretrainSettings
from ldm.storybook.pretraining.soft import soften
from ldm.storybook.pretraining.tokenizer import train_tokenizer
from ldm.storybook.pretraining.vae import new_vae, train_decoder, train_vae

log = logging.getLogger(__name__)
# Added to the seed, so that pools differ.
VAE_POOL, DIFFUSION_POOL, LESSON, GALLERY, SETTLING, RECOGNITION_LESSON = range(11, 17)


def _start(settings: PretrainSettings) -> BaseModel | None:
    """The base to go on from, if any: its tokenizer, VAE and weights are kept."""
    return load_base(settings.start_from) if settings.start_from is not None else None


def _save(folder: Path, *write: Callable[[Path], object]) -> None:
    """Have each of `write` fill a folder beside `folder`, then rename it: never half there."""
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for fill in write:
        fill(staging)
    shutil.rmtree(folder, ignore_errors=True)
    staging.replace(folder)


def vae_stage(settings: PretrainSettings) -> None:
    """Rendered pictures -> `work/vae_joint`: encoder and decoder trained together."""
    folder = Path(settings.work) / "vae_joint"
    if folder.is_dir() or settings.start_from is not None:
        return
    pool = _vae_pool(settings)
    torch.manual_seed(settings.seed)
    vae = new_vae(settings.vae.channels, settings.vae.latent_channels)
    state = Path(settings.work) / "vae.pt"
    train_vae(vae, pool, settings.vae.loop, settings.vae.batch, settings.seed, state)
    _save(folder, vae.save_pretrained)


def _vae_pool(settings: PretrainSettings) -> Pool:
    return draw_pool(settings.pool.vae, settings.seed + VAE_POOL, subject_share=0.4, variants=1)


def decoder_stage(settings: PretrainSettings) -> None:
    """`work/vae_joint` -> `work/vae`: the same encoder, a better decoder."""
    work = Path(settings.work)
    if (work / "vae").is_dir():
        return
    if start := _start(settings):
        _save(work / "vae", start.vae.save_pretrained)
        return
    vae = AutoencoderKL.from_pretrained(work / "vae_joint")
    wanted = settings.vae
    state = work / "decoder.pt"
    pool = _vae_pool(settings)
    train_decoder(vae, pool, wanted.decoder_loop, wanted.batch, settings.seed, state)
    _save(work / "vae", vae.save_pretrained)


def tokenizer_stage(settings: PretrainSettings) -> None:
    """Captions -> `work/tokenizer`."""
    folder = Path(settings.work) / "tokenizer"
    if folder.is_dir():
        return
    if start := _start(settings):
        tokenizer = start.tokenizer
    else:
        rng = np.random.default_rng(settings.seed)
        captions = [full_caption(random_scene(rng)) for _ in range(4000)]
        wanted = settings.diffusion
        tokenizer = train_tokenizer(captions, wanted.text_length, wanted.vocabulary)
    _save(folder, tokenizer.save_pretrained)


def latents_stage(settings: PretrainSettings) -> None:
    """Rendered pictures -> `work/latents.npy` and `work/captions.json`."""
    work = Path(settings.work)
    if (work / "latents.npy").is_file():
        return
    pool = draw_pool(settings.pool.diffusion, settings.seed + DIFFUSION_POOL)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    (work / "captions.json").write_text(json.dumps(pool.captions))
    save_array(work / "latents.npy", encode_pool(vae, pool))


def _new_networks(settings: PretrainSettings, tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    wanted = settings.diffusion
    if start := _start(settings):
        networks = {"unet": start.unet, "text_encoder": start.text_encoder}
        return nn.ModuleDict(networks).requires_grad_(True)
    torch.manual_seed(settings.seed)
    text_encoder = new_text_encoder(tokenizer, wanted.text_width, wanted.text_layers)
    size = 64 // 2 ** (len(settings.vae.channels) - 1)
    unet = new_unet(size, settings.vae.latent_channels, wanted.channels, wanted.text_width)
    return nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})


def diffusion_stage(settings: PretrainSettings) -> None:
    """Latents and captions -> the base folder, a diffusers pipeline in float16."""
    work, wanted = Path(settings.work), settings.diffusion
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    networks = _new_networks(settings, tokenizer)
    base = BaseModel(
        tokenizer,
        networks["text_encoder"],
        vae,
        networks["unet"],
        new_scheduler(),
        source="pretraining",
        fingerprint="",
        vae_fingerprint="",
    )

    def after(step: int) -> None:
        if step in wanted.half_trained_at:
            drawn = half_trained(base, wanted.half_trained_count, settings.seed + step)
            save_array(work / f"half_trained_{step:06d}.npy", drawn)

    train_diffusion(
        tokenizer,
        networks,
        np.load(work / "latents.npy", mmap_mode="r"),
        json.loads((work / "captions.json").read_text()),
        wanted.loop,
        wanted.batch,
        wanted.min_snr_gamma,
        settings.seed,
        work / "diffusion.pt",
        after,
    )
    save_base(base, Path(settings.base))


def half_trained(base: BaseModel, count: int, seed: int) -> np.ndarray:
    """What the unfinished base draws: count x 64 x 64 x 3, uint8; the oracle must refuse it."""
    rng = np.random.default_rng(seed)
    prompts = [full_caption(random_scene(rng)) for _ in range(count)]
    drawn = generate(base, prompts, range(seed, seed + count), steps=12, batch=32)
    return np.stack([np.asarray(picture) for picture in drawn])


def save_base(base: BaseModel, folder: Path) -> None:
    """Write the base as the diffusers folder that `StableDiffusionPipeline` opens, float16."""
    from copy import deepcopy

    pipeline = StableDiffusionPipeline(
        vae=deepcopy(base.vae),
        text_encoder=deepcopy(base.text_encoder),
        tokenizer=base.tokenizer,
        unet=deepcopy(base.unet),
        scheduler=base.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    # vocab.json and merges.txt, which other tools read instead of tokenizer.json.
    base.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))


def oracle_stage(settings: PretrainSettings) -> None:
    """Renders, spoilt and half-trained pictures, the VAE -> `work/oracle`, all but recognition.

    Going on from a base leaves the oracle as it is: what measures must not change on the way.
    """
    if settings.start_from is not None:
        return
    work, wanted = Path(settings.work), settings.oracle
    # The other half of these pictures is for testing.
    early = [np.load(path)[::2] for path in sorted(work.glob("half_trained_*.npy"))]
    torch.manual_seed(settings.seed)
    oracle = train_oracle(
        StorybookOracle(wanted.channels, wanted.features, wanted.embedding),
        draw_lesson(settings.pool.oracle_families, settings.seed + LESSON),
        np.concatenate(early) if early else np.zeros((0, 64, 64, 3), np.uint8),
        AutoencoderKL.from_pretrained(work / "vae").eval(),
        wanted.loop,
        wanted.families,
        settings.seed,
        work / "oracle.pt",
    )
    fresh = draw_pool(wanted.settling, settings.seed + SETTLING, subject_share=0.4, variants=1)
    settle_none(oracle, fresh.pictures)
    _save(work / "oracle", lambda folder: _save_oracle(oracle, folder, {}))


def recognition_stage(settings: PretrainSettings) -> None:
    """`work/oracle`, or the oracle of `recognition.start_from` -> the oracle's folder.

    The threshold of identity is set on the weights as they are shipped; the score stage adds how
    often it is right.
    """
    if settings.start_from is not None:
        return
    for kind in settings.identity.rivals:
        if kind not in RIVALS:
            raise UserError(f"identity.rivals: no {kind!r}; there are {', '.join(RIVALS)}")
    work, wanted = Path(settings.work), settings.recognition
    oracle = StorybookOracle.load(Path(wanted.start_from or work / "oracle"))
    lesson = draw_lesson(wanted.families, settings.seed + RECOGNITION_LESSON)
    softened = work / "softened.npy"
    if not softened.is_file():
        first = lesson.pictures[: wanted.softened_families * PER_FAMILY]
        save_array(softened, soften(load_base(settings.base), first, settings.seed))
    crisp = [seen_of(oracle, lesson.pictures, faults) for faults in (None, settings.seed)]
    train_recognition(
        oracle,
        crisp,
        seen_of(oracle, np.load(softened)),
        wanted.loop,
        wanted.batch,
        settings.seed,
        work / "recognition.pt",
    )
    oracle.load_state_dict(unpacked(packed(oracle.state_dict())))
    gallery = draw_gallery(oracle, settings.identity.subjects, settings.seed + GALLERY)
    threshold = round(find_threshold(gallery, settings.identity.rivals), 4)
    folder = Path(settings.oracle_folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_oracle(oracle, folder, {"threshold": threshold})


def _save_oracle(oracle: StorybookOracle, folder: Path, rates: dict[str, float]) -> None:
    """Write what `StorybookOracle.load` reads."""
    about = {
        "channels": oracle.channels,
        "features": oracle.features,
        "embedding": oracle.embed.out_features,
        "rates": rates,
    }
    save_file(packed(oracle.state_dict()), folder / "oracle.safetensors")
    (folder / "oracle.json").write_text(json.dumps(about, indent=2) + "\n")


STAGES: dict[str, Callable[[PretrainSettings], None]] = {
    "vae": vae_stage,
    "decoder": decoder_stage,
    "tokenizer": tokenizer_stage,
    "latents": latents_stage,
    "diffusion": diffusion_stage,
    "oracle": oracle_stage,
    "recognition": recognition_stage,
    "score": score_stage,
}
