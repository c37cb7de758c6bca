"""Prompts and seeds to pictures, without leaving a trace in the models or the random state."""

import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.data.encoding import without_overflow
from ldm.data.images import to_picture
from ldm.data.sizes import sizes_of_whole
from ldm.errors import UserError
from ldm.models.base import BaseModel, check_resolution
from ldm.models.emphasis import Prompt
from ldm.models.modes import in_eval_mode
from ldm.models.text import TextEmbedding
from ldm.randomness import generator
from ldm.sampling.denoiser import Guidance, guided_prediction
from ldm.sampling.image import (
    Hires,
    Known,
    Start,
    check_begin,
    enlarged,
    known_of,
    last_timesteps,
    pasted,
)
from ldm.sampling.samplers import check_sampler, check_steps, make_sampler

log = logging.getLogger(__name__)

PIXELS_AT_ONCE = 1024 * 1024  # pixels that the VAE decodes in one call; bounds its memory

Text = tuple[TextEmbedding, TextEmbedding | None]  # of the prompts, and of the negative
How = tuple[int, str, Guidance]  # steps, sampler
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)


def generate(
    base: BaseModel,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    negative: Prompt = "",
    scale: float = 5.0,
    rescale: float = 0.0,
    guidance_interval: Sequence[float] | None = None,
    steps: int = 25,
    sampler: str = "dpmpp_2m",
    height: int | None = None,
    width: int | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    latents: Tensor | None = None,
    start: Start | None = None,
    hires: Hires | None = None,
) -> Iterator[Image.Image]:
    """Make one RGB picture for each (prompt, seed), in order, `batch` at a time (see `batches`).

    Noise, that of ancestral samplers too, comes from each picture's own seed, so picture n does
    not depend on the batch it is made in (up to rounding, 1/255). Device and dtype are those of
    `base`; the sampler itself works in float32. Global random state and the modules' train/eval
    modes are the same afterwards as before, also when the iteration is broken off.

    scale, rescale, guidance_interval: see `Guidance`.
    height, width: pixels, default the base's own. latents [N, C, h, w]: unit noise to start from
    instead of the seeds' own. start: a picture to begin from; hires: a second, larger pass.
    UserError, at once: steps, scale, sampler, size, batch, start or hires impossible.
    """
    height = height or base.default_resolution
    width = width or base.default_resolution
    guidance = Guidance(scale, rescale, guidance_interval)
    _check(base, steps, sampler, height, width, batch)
    check_begin(start, hires, steps, (width, height))
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts, but {len(seeds)} seeds")
    shape = (base.latent_channels, height // base.latent_factor, width // base.latent_factor)
    if latents is not None and latents.shape != (len(prompts), *shape):
        raise ValueError(f"latents {tuple(latents.shape)}, not {(len(prompts), *shape)}")

    def pictures() -> Iterator[Image.Image]:
        for part in batches(base, prompts, negative, scale, batch):
            noise = initial_noise(seeds[part], shape) if latents is None else latents[part]
            with in_eval_mode(*base.networks.values(), base.vae):
                text = _encode(base, prompts[part], negative, scale)
                known = known_of(base, start) if start else None
                how = (steps, sampler, guidance)
                clean = _solved(base, noise, text, seeds[part], how, known)
                if hires is not None:
                    clean = _again_larger(base, clean, text, seeds[part], how, hires)
                _tell_of_overflow(base, clean, prompts[part], seeds[part])
                made = [pasted(to_picture(pixels), start) for pixels in decode(base, clean)]
            for done, picture in enumerate(made, part.start + 1):
                if progress is not None:
                    progress(done, len(prompts))
                yield picture

    return pictures()


def batches(
    base: BaseModel, prompts: Sequence[Prompt], negative: Prompt, scale: float, batch: int
) -> list[slice]:
    """Which pictures `generate` makes at once: neighbours read in equally many windows of text.

    With others, a prompt would get empty windows at its end, and its picture depend on theirs.
    """
    least = 0 if scale == 1.0 else base.text.windows(negative)
    counts = [max(least, base.text.windows(prompt)) for prompt in prompts]
    parts, start = [], 0
    for _, group in itertools.groupby(counts):
        end = start + len([*group])
        parts += [slice(first, min(first + batch, end)) for first in range(start, end, batch)]
        start = end
    return parts


def _solved(
    base: BaseModel,
    noise: Tensor,
    text: Text,
    seeds: Sequence[int],
    how: How,
    known: Known | None,
    purpose: str = "sampler",
) -> Tensor:
    """`denoise` with a fresh sampler, and each picture's own generator."""
    steps, sampler, guidance = how
    generators = [generator(seed, purpose) for seed in seeds]
    solver = make_sampler(sampler, base.scheduler)
    return denoise(base, solver, steps, noise, *text, generators, guidance, known)


def _again_larger(
    base: BaseModel, clean: Tensor, text: Text, seeds: Sequence[int], how: How, hires: Hires
) -> Tensor:
    """The second pass, with noise of its own."""
    sides = (side * base.latent_factor for side in reversed(clean.shape[-2:]))
    width, height = (side // base.latent_factor for side in hires.size(base, *sides))
    known = enlarged(clean, height, width, hires.strength)
    noise = initial_noise(seeds, (base.latent_channels, height, width), "hires latents")
    return _solved(base, noise, text, seeds, how, known, "hires sampler")


def initial_noise(
    seeds: Sequence[int], shape: tuple[int, int, int], purpose: str = "latents"
) -> Tensor:
    """Return unit noise [N, C, h, w], float32 on the CPU, each picture's from its own seed."""
    return torch.stack([torch.randn(shape, generator=generator(s, purpose)) for s in seeds])


def denoise(
    base: BaseModel,
    solver: Any,
    steps: int,
    noise: Tensor,
    cond: TextEmbedding,
    uncond: TextEmbedding | None,
    generators: list[torch.Generator],
    guidance: Guidance,
    known: Known | None = None,
) -> Tensor:
    """Integrate from unit noise to clean latents, both [N, C, h, w]; the result is float32.

    known: begin from it, and let stay of it what is not to be drawn.

    `solver` is a fresh scheduler of `make_sampler`; cond, uncond of N prompts; `generators`, one
    per picture, feed the solvers that add noise on the way. SDXL is told that a picture is whole
    and of the size it is drawn in.
    """
    solver.set_timesteps(steps, device=base.device)
    takes_generator = "generator" in inspect.signature(solver.step).parameters
    extra: dict[str, Any] = {"generator": generators} if takes_generator else {}
    noise, timesteps = noise.to(base.device, torch.float32), solver.timesteps
    if known is None:
        latents = noise * solver.init_noise_sigma
    else:
        timesteps = last_timesteps(solver, steps, known.strength)
        latents = known.noisy(solver, noise, timesteps)
    height, width = (side * base.latent_factor for side in noise.shape[-2:])
    sizes = sizes_of_whole(height, width, len(noise)).to(base.device)
    for place, t in enumerate(timesteps, 1):  # second-order solvers list a step's two halves
        model_input = solver.scale_model_input(latents, t)
        scale = guidance.scale_at(t, solver.alphas_cumprod)
        prediction = guided_prediction(
            base.unet, model_input, t, cond, uncond, sizes, scale, guidance.rescale
        )
        latents = solver.step(prediction, t, latents, return_dict=False, **extra)[0]
        if known is not None:
            latents = known.put_back(latents, solver, noise, timesteps[place:])
    return latents


def decode(base: BaseModel, latents: Tensor) -> Iterator[Tensor]:
    """Decode scaled latents [N, C, h, w] -> N pictures [3, H, W], about [-1, 1], not clipped.

    A picture whose latents are not finite is black.
    """
    config = base.vae.config
    shift = getattr(config, "shift_factor", None) or 0.0
    latents = latents / config.scaling_factor + shift
    pixels = latents.shape[-1] * latents.shape[-2] * base.latent_factor**2
    for part in latents.split(max(1, PIXELS_AT_ONCE // pixels)):
        whole = is_finite(part)[:, None, None, None]
        # Zeros for the others, or the VAE would be taken for what overflows.
        (decoded,) = without_overflow(base.vae, partial(_decoded, base, part.where(whole, 0)))
        if not decoded.isfinite().all():
            log.warning("the VAE makes NaN of a picture, in %s", base.vae.dtype)
        yield from decoded.where(whole, -1).nan_to_num(nan=-1.0)


def _decoded(base: BaseModel, latents: Tensor) -> tuple[Tensor]:
    with torch.autocast(base.device.type, enabled=False):  # see BaseModel.to
        return base.vae.decode(latents.to(base.vae.dtype), return_dict=False)


def is_finite(latents: Tensor) -> Tensor:
    """[N, C, h, w] -> [N], bool: whether all of a picture's latents are numbers."""
    return latents.isfinite().flatten(1).all(1)


def _tell_of_overflow(
    base: BaseModel, latents: Tensor, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> None:
    """Name the pictures that the UNet made NaN of; no VAE can decode these."""
    kind = base.device.type
    dtype = base.unet.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    finite = is_finite(latents).tolist()
    for prompt, seed, whole in zip(prompts, seeds, finite, strict=True):
        if not whole:
            log.warning(
                "the UNet makes NaN in %s: the picture of %r, seed %d, is black; float16 is too "
                "small for some models: use bf16 or fp32, which make NaN of damaged weights only",
                *(dtype, prompt if isinstance(prompt, str) else prompt.text, seed),
            )


def _encode(base: BaseModel, prompts: Sequence[Prompt], negative: Prompt, scale: float) -> Text:
    """Return embeddings of N prompts and of as many times the negative, encoded in one pass."""
    count = len(prompts)
    negatives = [] if scale == 1.0 else [negative] * count
    text = base.text.encode([*prompts, *negatives], base.device)
    return text[:count], text[count:] if negatives else None


def _check(
    base: BaseModel,
    steps: int,
    sampler: str,
    height: int,
    width: int,
    batch: int,
) -> None:
    """Raise UserError for settings that cannot work; better here than in the middle of a batch."""
    check_sampler(sampler)
    check_steps(steps, base.scheduler)
    if batch < 1:
        raise UserError(f"sampling batch: {batch} is not at least 1")
    check_resolution(base, height, "height")
    check_resolution(base, width, "width")
