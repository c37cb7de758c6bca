"""The limits: the networks' own calls, on tensors in memory; and what else runs in its own process.

    python -m bench.speed.bare WHAT BASE [NUMBER ...]

Each prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ldm.models.base import BaseModel, load_base
from ldm.models.precision import autocast
from ldm.models.unet import predict

WHAT = ("step", "compiled", "formats", "draw", "one_pass", "ours", "pipeline", "start")
PROMPTS = ("a drawing of sks robot", "a drawing of a robot")


def step(
    base: BaseModel, steps: int, samples: int, pixels: int, precision: str, vae: bool = False
) -> dict[str, Any]:
    """Seconds of `stepper`, the median."""
    once = stepper(base, samples, pixels, precision, vae)
    return {"seconds": _median(once, steps, warm=min(3, steps))}


def compiled(source: str, rounds: int, samples: int, pixels: int) -> dict[str, Any]:
    """A step with the UNet's blocks compiled and one as written, in turn; what compiling took.

    As nothing had ever been compiled here: the compiler keeps what it made.
    """
    from ldm.training.compiled import compile_blocks

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    plain, other = load_base(source), load_base(source)
    compile_blocks(other.unet)
    calls = [stepper(base, samples, pixels, "fp32") for base in (other, plain)]
    firsts = []
    for call in calls:
        began = time.perf_counter()
        call()
        firsts.append(time.perf_counter() - began)
        call()
    times = _alternating(calls, rounds)
    ratios = [written / quick for quick, written in zip(*times, strict=True)]
    quick, written = map(statistics.median, times)
    return {"compiled": quick, "written": written, "ratio": statistics.median(ratios),
            "compiling": firsts[0] - firsts[1]}  # fmt: skip


def formats(source: str, rounds: int, samples: int, pixels: int) -> dict[str, Any]:
    """A step, and `samples` guided pictures in four steps, with weights of convolutions channels
    last and contiguous, in turn: seconds, and how many times as fast the first is."""
    found: dict[str, Any] = {}
    for what in ("step", "draw"):
        calls: list[Callable[[], None]] = []
        for layout in (torch.channels_last, torch.contiguous_format):
            base = load_base(source)
            call = (
                stepper(base, samples, pixels, "fp32")
                if what == "step"
                else drawer(base, samples, 4)
            )
            for network in (base.unet, *([base.vae] if what == "draw" else [])):
                nn.Module.to(network, memory_format=layout)  # type: ignore[call-overload]
            calls.append(call)
        for call in calls * 3:
            call()
        last, contiguous = _alternating(calls, rounds)
        ratios = [other / own for own, other in zip(last, contiguous, strict=True)]
        found |= {f"{what}_contiguous": statistics.median(contiguous),
                  f"{what}_last": statistics.median(last),
                  f"{what}_ratio": statistics.median(ratios)}  # fmt: skip
    return found


def stepper(
    base: BaseModel, samples: int, pixels: int, precision: str, vae: bool = False
) -> Callable[[], None]:
    """Forward, backward and fused AdamW of UNet and text encoder; half of each prompt's samples.

    The two prompts are encoded once each, as that is all the work there is. vae: its encoder is
    trained as well, on pictures, and its decoder has nothing to do; else latents are there, as
    training with a frozen VAE has them, and the VAE is not.
    """
    networks: list[nn.Module] = [base.unet, base.text_encoder]
    side, channels = pixels // base.latent_factor, base.latent_channels
    if vae:
        networks += [base.vae.encoder, base.vae.quant_conv]
    else:
        del base.vae
    for network in networks:
        network.requires_grad_(True).train()
    weights = [weight for network in networks for weight in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
    noisy = torch.randn(samples, channels, side, side)
    target, t = torch.randn_like(noisy), torch.randint(0, 1000, (samples,))
    prompts = [PROMPTS[place * 2 // samples] for place in range(samples)]
    pictures = torch.rand(samples, 3, pixels, pixels) if vae else None

    def once() -> None:
        with autocast(torch.device("cpu"), precision):
            text, given = base.text.encode(prompts, "cpu"), noisy
            if pictures is not None:
                given = noisy + base.vae.encode(pictures).latent_dist.mean
            prediction = predict(base.unet, given, t, text, None)
        (prediction - target).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def draw(base: BaseModel, count: int, batch: int, steps: int) -> dict[str, Any]:
    """UNet and VAE calls of `count` guided pictures, `batch` at a time, without a sampler."""
    once = drawer(base, batch, steps)
    once()
    began = time.perf_counter()
    for _ in range(-(-count // batch)):
        once()
    return {"seconds": time.perf_counter() - began}


def drawer(base: BaseModel, batch: int, steps: int) -> Callable[[], None]:
    """The same of one batch."""
    side = base.default_resolution // base.latent_factor
    latents = torch.randn(batch, base.latent_channels, side, side)
    text = base.text.encode([PROMPTS[1]] * batch + [""] * batch, "cpu")
    double = torch.cat([latents, latents])

    @torch.no_grad()
    def once() -> None:
        for moment in range(steps):
            predict(base.unet, double, 900 - moment, text, None)
        base.vae.decode(latents)

    return once


def one_pass(base: BaseModel, rounds: int, batch: int) -> dict[str, Any]:
    """Both predictions of guidance in one call of the UNet, and in two."""
    side = base.default_resolution // base.latent_factor
    latents = torch.randn(batch, base.latent_channels, side, side)
    text = base.text.encode([PROMPTS[1]] * batch + [""] * batch, "cpu")
    double = torch.cat([latents, latents])

    def two() -> None:
        predict(base.unet, latents, 500, text[:batch], None)
        predict(base.unet, latents, 500, text[batch:], None)

    calls: list[Callable[[], object]] = [lambda: predict(base.unet, double, 500, text, None), two]
    with torch.no_grad():
        for call in calls * 2:
            call()
        times = _alternating(calls, rounds)
    ratios = [two_calls / one for one, two_calls in zip(*times, strict=True)]
    return {"one": statistics.median(times[0]), "two": statistics.median(times[1]),
            "ratio": statistics.median(ratios)}  # fmt: skip


def ours(base: BaseModel, rounds: int, batch: int, steps: int, scale: float) -> dict[str, Any]:
    """The project's own sampling, dpmpp_2m."""
    from ldm.sampling.generate import generate

    def once() -> None:
        list(
            generate(
                base,
                [PROMPTS[1]] * batch,
                range(batch),
                steps=steps,
                scale=scale,
                sampler="dpmpp_2m",
                batch=batch,
            )
        )

    return {"seconds": _median(once, rounds, warm=1)}


def pipeline(source: str, rounds: int, batch: int, steps: int, scale: float) -> dict[str, Any]:
    """diffusers' StableDiffusionPipeline with the same solver."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def once() -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        pipe(
            [PROMPTS[1]] * batch,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generators,
        )

    return {"seconds": _median(once, rounds, warm=1)}


def start(source: str) -> dict[str, Any]:
    """Import what training imports, and load the base: the least before a first step."""
    import pytorch_lightning  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    load_base(source)
    return {}


def _alternating(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for place, call in enumerate(calls):
            began = time.perf_counter()
            call()
            times[place].append(time.perf_counter() - began)
    return times


def _median(once: Callable[[], None], rounds: int, warm: int = 3) -> float:
    for _ in range(warm):
        once()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("base")
    parser.add_argument("numbers", nargs="*", type=float)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--vae", action="store_true", help="trained too")
    args = parser.parse_intermixed_args()
    numbers = [int(number) if number.is_integer() else number for number in args.numbers]
    call: Callable[..., dict[str, Any]] = globals()[args.what]
    if args.what in ("pipeline", "start", "compiled", "formats"):
        found = call(args.base, *numbers)
    elif args.what == "step":
        steps, samples, pixels = map(int, args.numbers)
        found = step(load_base(args.base), steps, samples, pixels, args.precision, args.vae)
    else:
        found = call(load_base(args.base), *numbers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
