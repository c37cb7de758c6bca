"""Pictures equal to diffusers' own, whatever the batch, with nothing disturbed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.models.base import BaseModel, load_base
from ldm.models.trainable import prepare_training
from ldm.models.unet import predict
from ldm.randomness import generator
from ldm.sampling.denoiser import Guidance
from ldm.sampling.generate import decode, denoise, generate, initial_noise
from ldm.sampling.samplers import SAMPLERS, make_sampler

TinyFolder = Callable[[str], Path]
PROMPTS = ["a drawing of sks robot on the beach", "a photo of the dog", "dog in snow"]
SEEDS = [7, 2**63 + 5, 0]
STEPS = 7


@pytest.fixture(scope="module")
def bases(tiny_base_folder: TinyFolder) -> dict[str, BaseModel]:
    return {kind: load_base(tiny_base_folder(kind)) for kind in ("eps", "v")}


@pytest.fixture(scope="module")
def pipelines(tiny_base_folder: TinyFolder) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline

    found = {}
    for kind in ("eps", "v"):
        found[kind] = StableDiffusionPipeline.from_pretrained(tiny_base_folder(kind))
        found[kind].set_progress_bar_config(disable=True)
    return found


def pixels(pictures: Iterator[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, dtype=np.int16) for picture in pictures])  # NHWC


@pytest.mark.parametrize(
    ("kind", "name", "scale", "rescale"),
    [  # every pair of them
        (("eps", "v")[(row + column) % 2], name, *guidance)
        for row, name in enumerate(SAMPLERS)
        for column, guidance in enumerate([(5.0, 0.0), (7.5, 0.7), (1.0, 0.0)])
    ],
)
def test_same_as_diffusers_pipeline(
    bases: dict[str, BaseModel],
    pipelines: dict[str, Any],
    kind: str,
    name: str,
    scale: float,
    rescale: float,
) -> None:
    base, pipeline = bases[kind], pipelines[kind]
    noise = initial_noise(SEEDS, (4, 8, 8))
    negative = "a robot"
    pipeline.scheduler = make_sampler(name, base.scheduler)
    theirs = pipeline(
        PROMPTS,
        negative_prompt=[negative] * 3,
        latents=noise,
        generator=[generator(seed, "sampler") for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=scale,
        guidance_rescale=rescale,
        output_type="np",
    ).images
    with torch.no_grad():
        cond = base.text.encode(PROMPTS, "cpu")
        uncond = base.text.encode([negative] * 3, "cpu")
        generators = [generator(seed, "sampler") for seed in SEEDS]
        solver = make_sampler(name, base.scheduler)
        clean = denoise(
            base, solver, STEPS, noise, cond, uncond, generators, Guidance(scale, rescale)
        )
        ours = torch.stack(list(decode(base, clean)))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # NCHW -> NHWC
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4, rtol=0)

    made = generate(
        base,
        PROMPTS,
        SEEDS,
        negative=negative,
        scale=scale,
        rescale=rescale,
        steps=STEPS,
        sampler=name,
    )
    assert np.abs(pixels(made) - theirs * 255).max() <= 1


def test_guidance_acts_in_its_interval(
    bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the formula for sigma, written out with diffusers' sampler in sigmas."""
    from diffusers import EulerDiscreteScheduler

    base, rows = bases["eps"], []

    def counted(unet: Any, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(latents))
        return predict(unet, latents, *rest)

    monkeypatch.setattr("ldm.sampling.denoiser.predict", counted)

    def picture(interval: tuple[float, float] | None) -> np.ndarray:
        rows.clear()
        how = {"steps": 8, "sampler": "euler", "guidance_interval": interval}
        return np.asarray(next(generate(base, ["a dog"], [3], **how)), np.int16)  # type: ignore[arg-type]

    whole = picture(None)
    assert rows == [2] * 8
    solver = EulerDiscreteScheduler.from_config(base.scheduler.config)
    solver.set_timesteps(8)
    sigmas = solver.sigmas[:8].tolist()
    middle = (sigmas[5] - 1e-3, sigmas[2] + 1e-3)
    partly = picture(middle)
    assert rows == [1, 1, 2, 2, 2, 2, 1, 1]
    assert (picture((0.0, 1e6)) == whole).all() and (partly != whole).any()
    with pytest.raises(UserError, match="guidance interval: 3 to 2"):
        generate(base, ["a dog"], [3], guidance_interval=(3, 2))


def test_everything_given_matters(bases: dict[str, BaseModel]) -> None:
    """Without this the comparison with the pipeline could hold for the wrong reason."""

    def latents(**changes: Any) -> torch.Tensor:
        base = bases["v"]
        given: dict[str, Any] = {
            "prompts": ["a dog"],
            "negative": "",
            "scale": 5.0,
            "rescale": 0.0,
        } | changes
        with torch.no_grad():
            cond, uncond = (
                base.text.encode(prompts, "cpu")
                for prompts in (given["prompts"], [given["negative"]])
            )
            solver = make_sampler(given.get("sampler", "ddim"), base.scheduler)
            noise = initial_noise([0], (4, 8, 8))
            generators = [generator(given.get("seed", 0), "sampler")]
            scale, rescale = given["scale"], given["rescale"]
            return denoise(
                base, solver, STEPS, noise, cond, uncond, generators, Guidance(scale, rescale)
            )

    plain = latents()
    for change in (
        {"prompts": ["sks robot"]},
        {"negative": "snow"},
        {"scale": 4.0},
        {"rescale": 0.7},
        {"sampler": "euler"},
    ):
        assert (latents(**change) - plain).abs().max() > 1e-3, change
    noisy = latents(sampler="euler_a")
    assert (latents(sampler="euler_a", seed=1) - noisy).abs().max() > 1e-1


@pytest.mark.parametrize("name", SAMPLERS)
def test_picture_does_not_depend_on_its_batch(bases: dict[str, BaseModel], name: str) -> None:
    prompts, seeds = [*PROMPTS, *PROMPTS[:2]], [*SEEDS, 5, 6]
    by_batch = [
        pixels(generate(bases["v"], prompts, seeds, steps=STEPS, sampler=name, batch=batch))
        for batch in (1, 2, 5)
    ]
    alone = pixels(generate(bases["v"], prompts[3:4], seeds[3:4], steps=STEPS, sampler=name))
    for other in by_batch[1:]:
        assert np.abs(other - by_batch[0]).max() <= 1
    assert np.abs(alone[0] - by_batch[0][3]).max() <= 1
    assert np.abs(by_batch[0][0] - by_batch[0][3]).max() > 10  # same prompt, another seed


@pytest.mark.parametrize(
    "name, passes", [(name, {"heun": 13, "plms": 8}.get(name, 7)) for name in SAMPLERS]
)
def test_one_forward_pass_per_guided_step(
    bases: dict[str, BaseModel], name: str, passes: int
) -> None:
    """Heun evaluates twice per step but the last; PLMS once more, to warm up."""
    sizes: list[int] = []
    hook = bases["v"].unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        list(generate(bases["v"], PROMPTS, SEEDS, steps=7, sampler=name))
        assert sizes == [6] * passes
        sizes.clear()
        list(generate(bases["v"], PROMPTS, SEEDS, steps=7, sampler=name, scale=1.0))
        assert sizes == [3] * passes
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m"])
def test_nothing_is_disturbed_in_the_middle_of_training(
    tiny_base_folder: TinyFolder, name: str
) -> None:
    base = load_base(tiny_base_folder("v"))
    prepare_training(base, text_encoder=True, gradient_checkpointing=True)
    base.unet.mid_block.eval()  # a mixture must come back as a mixture
    modules = [m for part in (base.unet, base.text_encoder, base.vae) for m in part.modules()]
    modes = [m.training for m in modules]
    states = torch.get_rng_state(), random.getstate()
    during: set[bool] = set()
    for part in (base.unet, base.text_encoder):
        part.register_forward_pre_hook(
            lambda module, _: during.update(m.training for m in module.modules())
        )
    before = pixels(generate(base, PROMPTS, SEEDS, steps=3, sampler=name))

    torch.manual_seed(99)
    after = pixels(generate(base, PROMPTS, SEEDS, steps=3, sampler=name))
    assert during == {False}
    assert np.array_equal(before, after)
    torch.set_rng_state(states[0])

    pictures = generate(base, PROMPTS, SEEDS, steps=3, sampler=name, batch=1)
    next(pictures)
    assert [m.training for m in modules] == modes  # also while the caller holds the iterator
    assert torch.is_grad_enabled()
    pictures.close()  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert [m.training for m in modules] == modes
    assert all(p.requires_grad and p.grad is None for p in base.unet.parameters())


def test_modes_come_back_after_an_error(bases: dict[str, BaseModel]) -> None:
    unet = bases["v"].unet.train()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = unet.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            list(generate(bases["v"], ["a dog"], [0], steps=2))
        assert unet.training
    finally:
        hook.remove()
        unet.eval()


def test_a_vae_that_overflows_decodes_again_in_float32(
    tiny_base_folder: TinyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(tiny_base_folder("v"))
    with torch.no_grad():
        base.vae.decoder.conv_in.weight.mul_(2e5)  # a norm follows: in float32 nothing is lost
    base.vae.half()
    exact = load_base(tiny_base_folder("v"))
    exact.vae.load_state_dict(base.vae.state_dict())
    assert exact.vae.dtype is torch.float32
    drawn, wanted = (pixels(generate(b, PROMPTS, SEEDS, steps=2, batch=1)) for b in (base, exact))
    assert np.array_equal(drawn, wanted) and wanted.std() > 1
    assert base.vae.dtype is torch.float32
    assert [r.message for r in caplog.records] == [
        "the VAE overflows in float16: this is done again, and from here on, in float32"
    ]


def test_a_unet_that_overflows_is_named(
    tiny_base_folder: TinyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(tiny_base_folder("v"), torch.float16)
    base.vae.half()
    plain = pixels(generate(base, PROMPTS, SEEDS, steps=2))
    hook = base.text_encoder.register_forward_hook(lambda module, args, output: overflow(output))
    drawn = pixels(generate(base, PROMPTS, SEEDS, steps=2))
    hook.remove()
    assert not drawn[1].any() and np.array_equal(drawn[[0, 2]], plain[[0, 2]])
    assert "the UNet makes NaN in torch.float16: the picture of 'a photo of the dog', seed" in (
        caplog.text
    )
    assert len(caplog.records) == 1 and base.vae.dtype is torch.float16


def overflow(output: Any) -> Any:
    """The second prompt's states so large that the UNet's products with them pass 65504."""
    output.last_hidden_state[1] = 6e4
    return output


def test_sizes_progress_and_latents(bases: dict[str, BaseModel]) -> None:
    seen: list[tuple[int, int]] = []
    made = generate(
        bases["v"],
        PROMPTS,
        SEEDS,
        steps=2,
        height=24,
        width=48,
        batch=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [picture.size for picture in made] == [(48, 24)] * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    noise = initial_noise(SEEDS, (4, 8, 8))
    by_seed = pixels(generate(bases["v"], PROMPTS, SEEDS, steps=2))
    given = pixels(generate(bases["v"], PROMPTS, [1, 1, 1], steps=2, latents=noise, batch=2))
    assert np.array_equal(by_seed[:2], given[:2]) or np.abs(by_seed - given).max() <= 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps: 0"),
        ({"steps": 1001}, "steps: 1001"),
        ({"sampler": "dpm"}, "no sampler 'dpm'"),
        ({"scale": -1.0}, "scale: -1"),
        ({"scale": float("nan")}, "scale: nan"),
        ({"rescale": 1.5}, "rescale: 1.5"),
        ({"batch": 0}, "batch: 0"),
        ({"width": 36}, "width: 36"),
    ],
)
def test_impossible_settings_are_refused_at_once(
    bases: dict[str, BaseModel], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(bases["v"], ["a dog"], [0], **settings)
