"""Make pictures with a trained run, a diffusers folder, a single file or a hub id.

PNGs carry their settings; `grid-*.png` shows them all, prompts in rows and seeds in columns.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import Sampling
from ldm.errors import UserError, exit_status
from ldm.run.command import DTYPES, add_choices, choices_of, given_choices, loras_of
from ldm.sampling.samplers import SAMPLERS

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ldm.run.source import Source

log = logging.getLogger("ldm.sample")

EXAMPLES = """\
examples:
  python scripts/sample.py --run logs/RUN --prompt "a drawing of [V] robot on the beach"
  python scripts/sample.py --run logs/RUN --snapshot 200 --prompts-file prompts.txt --n 8 --seed 100
  python scripts/sample.py --model owner/name --lora dog.safetensors:0.8 --prompt "a sks dog"
  python scripts/sample.py --model data/storybook-sd --prompt "a drawing of a red dog in the snow"
"""
MEMORY = ("auto", "fast", "small")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; sampling settings not given stay None."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder below logs/")
    source.add_argument("--model", metavar="WHAT", help="diffusers folder, single file or hub id")
    add("--snapshot", metavar="best|last|STEP", help="of the run (default: best)")
    add(
        "--ema",
        action="store_true",
        help="the averaged weights: of the snapshot, or in a single file",
    )
    add("--identifier", metavar="WORD", help="what [V] stands for (default: the run's)")
    add("--prompt", nargs="+", action="extend", default=[], help="one or several")
    add("--prompts-file", type=Path, metavar="FILE", help="one prompt per line")
    add("--negative", metavar="PROMPT", help="what to keep away from")
    add("--scale", type=float, help="guidance; 1 is none")
    add("--rescale", type=float, help="guidance rescale, 0 to 1")
    add("--steps", type=int, help="of the sampler")
    add("--sampler", choices=SAMPLERS)
    add("--width", type=int, help="pixels")
    add("--height", type=int, help="pixels")
    add("--seed", type=int, default=0, help="of the first picture of each prompt (default: 0)")
    add("--n", type=int, default=4, help="pictures per prompt (default: 4)")
    add("--batch", type=int, help="pictures at once")
    add("--device", help="cuda, cuda:1, xpu, mps, cpu (default: what there is)")
    levels = "fast: all networks on the device; small: one at a time; auto: small where needed"
    add("--memory", choices=MEMORY, default="auto", help=f"{levels} (default: auto)")
    add("--quantize", choices=("int8", "nf4"), help="the UNet's linear weights, to 8 or 4 bits")
    add("--dtype", choices=DTYPES, help="of UNet and text encoders (default: fp16 on cuda and xpu)")
    add("--out", type=Path, metavar="FOLDER", help="where the pictures go")
    add_choices(parser)
    args = parser.parse_args(words)
    if not args.prompt and not args.prompts_file:
        parser.error("give --prompt or --prompts-file")
    if args.model and args.snapshot:
        parser.error("--snapshot belongs to --run")
    if args.run and (given := given_choices(args)):
        parser.error(f"{given[0]} belongs to --model; a run has its own configuration")
    return args


def prompts_of(args: argparse.Namespace) -> list[str]:
    """Prompts of the command line, then those of the file: a line each, empty ones skipped."""
    prompts = list(args.prompt)
    if args.prompts_file:
        try:
            lines = args.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts-file {args.prompts_file} cannot be read ({error}); "
                "give a UTF-8 text file with one prompt per line"
            ) from error
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts-file {args.prompts_file} holds no prompt")
    return prompts


def filled(text: str, identifiers: list[str]) -> str:
    """Put the identifiers where [V], [V2], ... stand. UserError if there is none to put."""
    from ldm.data.prompts import PLACEHOLDER, fill_all

    if identifiers:
        return fill_all(text, identifiers)
    if PLACEHOLDER in text:
        raise UserError(
            f"prompt {text!r}: {PLACEHOLDER} stands for a run's identifier and --model has none; "
            "write the word itself, or give --identifier"
        )
    return text


def warn_if_nameless(prompts: list[str], identifiers: list[str]) -> None:
    """Warn of prompts that name none of the subjects."""
    from ldm.data.prompts import PLACEHOLDER, names_subject

    if not identifiers:
        return
    for prompt in prompts:
        if "[V" not in prompt and not any(names_subject(prompt, name) for name in identifiers):
            log.warning(
                "prompt %r has neither %s nor %s in it, so it does not name the subject",
                *(prompt, PLACEHOLDER, " or ".join(map(repr, identifiers))),
            )


def source_of(args: argparse.Namespace, dtype: "torch.dtype") -> "Source":
    """What --run or --model names, with --identifier and --out on top."""
    from ldm.run.source import source_of_model, source_of_run

    if args.run:
        source = source_of_run(args.run, args.snapshot or "best", args.ema, dtype)
    else:
        choices, loras = choices_of(args, args.ema), loras_of(args)
        source = source_of_model(args.model, choices, loras, dtype)
    own, others = source.identifiers[:1], source.identifiers[1:]
    identifiers = [args.identifier] if args.identifier else own
    return replace(source, identifiers=[*identifiers, *others], out=args.out or source.out)


def sampling_of(args: argparse.Namespace, defaults: Sampling) -> Sampling:
    """The source's settings, with what the command line gives on top."""
    keys = ("sampler", "steps", "scale", "rescale", "negative", "batch")
    given = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    return replace(defaults, **given)


def first_number(folder: Path) -> int:
    """Make the folder; return the number after the highest that a picture in it begins with."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        starts = [path.name.removeprefix("grid-")[:5] for path in folder.glob("*.png")]
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    return max((int(start) + 1 for start in starts if start.isdecimal()), default=0)


def save(picture: "Image.Image", path: Path, settings: dict[str, Any]) -> None:
    from ldm.sampling.metadata import png_info

    try:
        picture.save(path, pnginfo=png_info(settings))
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror or error})") from error


def make_pictures(
    args: argparse.Namespace, source: "Source", prompts: list[str], sampling: Sampling
) -> list[Path]:
    """Make, save and return every picture, then the grid."""
    from rich.console import Console
    from rich.progress import track

    from ldm.sampling.generate import generate
    from ldm.sampling.grid import labelled_grid

    seeds = list(range(args.seed, args.seed + args.n))
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    settings = {**vars(sampling), **source.provenance}
    settings["width"] = args.width or source.resolution
    settings["height"] = args.height or source.resolution
    settings |= {"device": str(source.base.device), "dtype": str(source.base.unet.dtype)}
    pictures = generate(
        source.base,
        [prompt for prompt, _ in jobs],
        [seed for _, seed in jobs],
        **vars(sampling),
        width=settings["width"],
        height=settings["height"],
    )
    number = first_number(source.out)
    made: list[Image.Image] = []
    paths: list[Path] = []
    console = Console(stderr=True)
    for picture in track(pictures, "pictures", total=len(jobs), console=console):
        prompt, seed = jobs[len(made)]
        path = source.out / f"{number + len(made):05d}-seed{seed}.png"
        save(picture, path, {"prompt": prompt, "seed": seed, **settings})
        made.append(picture)
        paths.append(path)
    rows = [made[start : start + args.n] for start in range(0, len(made), args.n)]
    grid = source.out / f"grid-{number:05d}.png"
    shared = {"prompt": "\n".join(prompts), "prompts": prompts, "seeds": seeds, **settings}
    save(labelled_grid(rows, prompts, [f"seed {seed}" for seed in seeds]), grid, shared)
    return [*paths, grid]


def sample(args: argparse.Namespace) -> list[Path]:
    """Everything but reading the command line; return the files written, the grid last."""
    if args.n < 1:
        raise UserError(f"--n {args.n}: at least one picture per prompt")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: seeds count from 0")
    templates = prompts_of(args)

    import torch

    from ldm.run.device import device_of
    from ldm.run.placing import Drawing, check_package, place_to_draw

    if args.quantize:
        check_package(args.quantize)

    device = device_of(args.device)
    usual = "fp16" if device.type in ("cuda", "xpu") else "fp32"
    dtype = getattr(torch, DTYPES[args.dtype or usual])
    source = source_of(args, dtype)
    warn_if_nameless(templates, source.identifiers)
    prompts = [filled(template, source.identifiers) for template in templates]
    sampling = sampling_of(args, source.defaults)
    sampling.negative = filled(sampling.negative, source.identifiers)
    if sampling.negative and sampling.scale == 1:
        log.warning("the negative prompt does nothing at guidance scale 1")
    sides = (args.width or source.resolution, args.height or source.resolution)
    guided = sampling.scale != 1
    count = min(sampling.batch, args.n * len(prompts))
    drawing = Drawing(max(sides), count, guided)
    way = place_to_draw(source.base, device, drawing, args.memory, args.quantize)
    source.provenance["quantize"] = way.quantized
    return make_pictures(args, source, prompts, sampling)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: print(*sample(args)[-1:]))


if __name__ == "__main__":
    sys.exit(main())
