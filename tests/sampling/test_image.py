"""Image to image, inpainting and the second pass, beside diffusers' own pipelines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.encoding import encode_pixels
from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.models.base import BaseModel, load_base
from ldm.randomness import generator
from ldm.sampling.denoiser import Guidance
from ldm.sampling.generate import decode, denoise, generate, initial_noise
from ldm.sampling.image import Hires, Known, Start, fitted, known_of, last_timesteps
from ldm.sampling.samplers import SAMPLERS, make_sampler

TinyFolder = Callable[[str], Path]
PROMPTS, SEEDS, STEPS = ["a drawing of sks robot", "dog in snow"], [7, 3], 8


@pytest.fixture(scope="module")
def bases(tiny_base_folder: TinyFolder) -> dict[str, BaseModel]:
    return {kind: load_base(tiny_base_folder(kind)) for kind in ("eps", "v", "sdxl")}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    made = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    made.paste("red", (4, 4, 20, 12))
    return made


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    made = Image.new("L", (32, 32))
    made.paste(255, (8, 8, 25, 24))
    return made


def pixels(pictures: Iterator[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])


def solved(base: BaseModel, name: str, known: Known | None, noise: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        cond, uncond = (base.text.encode(p, "cpu") for p in (PROMPTS, ["snow"] * len(PROMPTS)))
        generators = [generator(seed, "sampler") for seed in SEEDS]
        solver = make_sampler(name, base.scheduler)
        return denoise(base, solver, STEPS, noise, cond, uncond, generators, Guidance(5.0), known)


def pipeline_of(kind: str, base: BaseModel, name: str) -> Any:
    """diffusers', of the same networks."""
    import diffusers

    pipeline = getattr(diffusers, kind)(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=make_sampler(name, base.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "plms"])
def test_same_as_diffusers_image_to_image(
    bases: dict[str, BaseModel], picture: Image.Image, name: str, strength: float
) -> None:
    base = bases["v" if strength < 0.5 else "eps"]
    noise, known = initial_noise(SEEDS, (4, 8, 8)), known_of(base, Start(picture, strength))
    pipeline = pipeline_of("StableDiffusionImg2ImgPipeline", base, name)

    def noisy(image: Any, timestep: torch.Tensor, *others: Any) -> torch.Tensor:
        latents = known.latents.expand(2, -1, -1, -1)
        return pipeline.scheduler.add_noise(latents, noise, timestep)

    pipeline.prepare_latents = noisy  # for the same noise: its own comes before the sampler's
    theirs = pipeline(
        PROMPTS,
        image=picture,
        negative_prompt=["snow"] * 2,
        strength=strength,
        generator=[generator(seed, "sampler") for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
    ).images
    ours = solved(base, name, known, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    made = generate(
        base,
        PROMPTS,
        SEEDS,
        negative="snow",
        steps=STEPS,
        sampler=name,
        start=Start(picture, strength),
    )
    shown = torch.stack(list(decode(base, ours))).add(1).mul(127.5).round().clamp(0, 255)
    assert np.abs(pixels(made) - shown.detach().permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.mark.parametrize("name", ["ddim", "euler_a", "heun", "dpmpp_2m", "unipc"])
def test_same_as_diffusers_inpainting(
    bases: dict[str, BaseModel], picture: Image.Image, mask: Image.Image, name: str
) -> None:
    base = bases["eps"]
    known = known_of(base, Start(picture, 0.8, mask))
    noise = initial_noise(SEEDS, (4, 8, 8))
    pipeline = pipeline_of("StableDiffusionInpaintPipeline", base, name)
    assert known.mask is not None and 0 < float(known.mask.mean()) < 1
    both, drawn = known.latents.expand(2, -1, -1, -1), known.mask

    def prepared(*args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        return pipeline.scheduler.add_noise(both, noise, options["timestep"]), noise, both

    pipeline.prepare_latents = prepared
    pipeline.prepare_mask_latents = lambda *args: (torch.cat([drawn] * 4), None)
    theirs = pipeline(
        PROMPTS,
        image=picture,
        mask_image=mask,
        negative_prompt=["snow"] * 2,
        strength=0.8,
        height=32,
        width=32,
        generator=[generator(seed, "sampler") for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        output_type="latent",
    ).images
    torch.testing.assert_close(solved(base, name, known, noise), theirs, atol=1e-4, rtol=1e-4)


def test_plms_begins_anywhere_as_it_does_at_the_first_timestep(bases: dict[str, BaseModel]) -> None:
    """Of a network that predicts the noise that was added, every sampler finds the picture."""
    base = bases["eps"]
    for strength in (0.2, 0.5, 1.0):
        solver = make_sampler("plms", base.scheduler)
        solver.set_timesteps(10)
        timesteps = last_timesteps(solver, 10, strength)
        clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        latents = solver.add_noise(clean, noise, timesteps[:1])
        for t in timesteps:
            latents = solver.step(noise, t, latents, return_dict=False)[0]
        # It ends a little before the end, at the first alpha of the schedule.
        left = solver.final_alpha_cumprod
        expected = left**0.5 * clean + (1 - left) ** 0.5 * noise
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["v", "sdxl"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_masked_stays(
    bases: dict[str, BaseModel], picture: Image.Image, mask: Image.Image, name: str, kind: str
) -> None:
    base, start = bases[kind], Start(picture, 0.6, mask)
    options: dict[str, Any] = {"steps": 5, "sampler": name, "start": start}
    made = pixels(generate(base, PROMPTS, SEEDS, **options))
    inside = np.asarray(mask) > 0
    original = np.asarray(picture, np.int16)
    assert np.array_equal(made[0][~inside], original[~inside])
    assert np.abs(made[0][inside] - original[inside]).mean() > 5
    alone = pixels(generate(base, PROMPTS[1:], SEEDS[1:], **options, batch=1))
    assert np.abs(alone[0] - made[1]).max() <= 1
    assert np.abs(made[0] - made[1]).max() > 5
    mean, _ = encode_pixels(base.vae, to_tensor(picture)[None])
    known = known_of(base, start)
    assert known.mask is not None and torch.equal(known.latents, mean)
    assert known.mask[0, 0].sum(0).tolist() == [0, 0, 4, 4, 4, 4, 4, 0]  # 8 to 25 touches 5 cells


@pytest.mark.parametrize("kind", ["v", "sdxl"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_second_pass(bases: dict[str, BaseModel], name: str, kind: str) -> None:
    base = bases[kind]
    options: dict[str, Any] = {"steps": 4, "sampler": name, "hires": Hires(1.5, 0.5)}
    made = pixels(generate(base, PROMPTS, SEEDS, width=32, height=40, **options))
    assert made.shape == (2, 64, 48, 3)  # 60 is no multiple of 8
    alone = pixels(generate(base, PROMPTS[1:], SEEDS[1:], width=32, height=40, **options))
    assert np.abs(alone[0] - made[1]).max() <= 1
    weak = options | {"hires": Hires(1.5, 0.25)}
    other = pixels(generate(base, PROMPTS, SEEDS, width=32, height=40, **weak))
    assert np.abs(other - made).max() > 1


def test_fitted_pictures_are_not_squashed() -> None:
    wide = Image.new("RGB", (90, 30), "white")
    wide.paste("red", (30, 0, 60, 30))
    cut = np.asarray(fitted(wide, (16, 16)))
    assert (cut[..., 0] == 255).all() and cut[..., 1:].max() < 20  # red alone, but for its edges
    assert fitted(wide, (90, 30)).tobytes() == wide.tobytes()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"start": Start(Image.new("RGB", (32, 32)), 0.0)}, "strength: 0.0 is not"),
        ({"start": Start(Image.new("RGB", (32, 32)), 0.1)}, "0.1 of 5 steps is none"),
        ({"start": Start(Image.new("RGB", (32, 32)), 1, Image.new("L", (32, 32)))}, "all of it"),
        ({"hires": Hires(1.0)}, "hires: 1.0 is not"),
        ({"hires": Hires(2, float("nan"))}, "hires strength: nan"),
        (
            {
                "start": Start(Image.new("RGB", (32, 32)), 1, Image.new("L", (32, 32), 255)),
                "hires": Hires(2),
            },
            "not with a mask",
        ),
    ],
)
def test_impossible_beginnings(
    bases: dict[str, BaseModel], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(bases["v"], ["a dog"], [0], steps=5, **options)
