"""The command line of drawing: its options, and what of it a picture tells."""

import argparse
from pathlib import Path
from typing import Any

from ldm.run.command import DTYPES, add_choices, given_choices
from ldm.sampling.samplers import SAMPLERS

MEMORY = ("auto", "fast", "small")
OF_RUN = ("run", "snapshot", "adapter_weight")
OF_MODEL = ("model", "tokenizer", "prediction_type", "vae", "clip_skip", "prompt_chunks", "lora")
SOURCE = (*OF_RUN, *OF_MODEL, "ema")  # which weights draw
SAMPLING = (  # those of a run's config
    "sampler",
    "steps",
    "scale",
    "rescale",
    "guidance_interval",
    "negative",
    "batch",
)
TOLD = (
    *SOURCE,
    "identifier",
    "plain",
    "init_image",
    "mask",
)  # told by a picture as they were given
PLACES = ("out", "run", "model", "device")  # say where, and change nothing in a picture


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options; what is not given is None, or an empty list."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, help="run folder below logs/")
    source.add_argument("--model", metavar="WHAT", help="diffusers folder, single file or hub id")
    add("--from-png", type=Path, metavar="FILE", help="draw this picture again")
    add("--snapshot", metavar="best|last|STEP", help="of the run (default: best)")
    add("--adapter-weight", type=float, metavar="W", help="of the run's adapter (default: 1)")
    averaged = "the averaged weights: of the snapshot, or in a single file"
    add("--ema", action="store_true", default=None, help=averaged)
    add("--identifier", metavar="WORD", help="what [V] stands for (default: the run's)")
    add("--prompt", nargs="+", action="extend", default=[], help="one or several")
    add("--prompts-file", type=Path, metavar="FILE", help="one prompt per line")
    add("--wildcards", type=Path, metavar="FOLDER", help="NAME.txt: the choices for __NAME__")
    add("--styles", type=Path, metavar="FILE", help="CSV or YAML with prompts by name")
    add("--style", nargs="+", action="extend", default=[], metavar="NAME", help="of --styles")
    plain = "prompts are nothing but text: no (weights:1.2), BREAK, {choices|of}"
    add("--plain", action="store_true", default=None, help=plain)
    add("--negative", metavar="PROMPT", help="what to keep away from")
    add("--scale", type=float, help="guidance; 1 is none")
    add("--rescale", type=float, help="guidance rescale, 0 to 1")
    interval = "noise levels (0 to about 15) at which guidance acts, as 0.3 5 (default: all)"
    add("--guidance-interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help=interval)
    add("--steps", type=int, help="of the sampler")
    add("--sampler", choices=SAMPLERS)
    add("--width", type=int, help="pixels")
    add("--height", type=int, help="pixels")
    add("--seed", metavar="SEEDS", help="of a prompt's first picture (default: 0), or all: 1-8,20")
    add("--n", type=int, help="pictures per prompt (default: 4)")
    add("--batch", type=int, help="pictures at once")
    add("--init-image", type=Path, metavar="FILE", help="begin from this picture")
    add("--strength", type=float, help="how much of it is drawn over, to 1 (default: 0.7)")
    add("--mask", type=Path, metavar="FILE", help="draw only where this picture is white")
    add("--hires", type=float, metavar="FACTOR", help="a second pass, larger by so much")
    add("--hires-strength", type=float, help="how much that draws over, to 1 (default: 0.6)")
    add("--device", help="cuda, cuda:1, xpu, mps, cpu (default: what there is)")
    levels = "fast: all networks on the device; small: one at a time; auto: small where needed"
    add("--memory", choices=MEMORY, help=f"{levels} (default: auto)")
    add("--quantize", choices=("int8", "nf4"), help="the UNet's linear weights, to 8 or 4 bits")
    add("--dtype", choices=DTYPES, help="of UNet and text encoders (default: fp16 on cuda and xpu)")
    add("--out", type=Path, metavar="FOLDER", help="where the pictures go")
    add_choices(parser)


def problem_of(args: argparse.Namespace) -> str | None:
    """What is wrong with the options as a whole."""
    if not args.from_png and not (args.run or args.model):
        return "give one of --run, --model and --from-png"
    if not args.from_png and not (args.prompt or args.prompts_file):
        return "give --prompt or --prompts-file"
    if (args.mask or args.strength is not None) and not (args.init_image or args.from_png):
        return "--mask and --strength belong to --init-image"
    if args.hires_strength is not None and not (args.hires or args.from_png):
        return "--hires-strength belongs to --hires"
    if bool(args.style) != bool(args.styles):
        return "--style NAME and --styles FILE belong together"
    if args.model and (args.snapshot or args.adapter_weight is not None):
        return "--snapshot and --adapter-weight belong to --run"
    if args.run and (given := given_choices(args)):
        return f"{given[0]} belongs to --model; a run has its own configuration"
    return None


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, but for --from-png."""
    options = {key: value for key, value in vars(args).items() if value not in (None, [])}
    return {key: value for key, value in options.items() if key != "from_png"}


def with_own(args: argparse.Namespace, own: dict[str, Any]) -> argparse.Namespace:
    """What is given, with a picture's own options for all that is not."""
    given = given_options(args)
    gone = set(given) | set(OF_MODEL if "run" in given else OF_RUN if "model" in given else ())
    if "init_image" in given:
        gone.add("mask")
    if "prompt" in given or "prompts_file" in given:
        gone.add("plain")  # was said of its own
    kept = {key: value for key, value in own.items() if key not in gone}
    return argparse.Namespace(**{**vars(args), **kept})


def told_options(args: argparse.Namespace) -> dict[str, Any]:
    """What a picture tells of the command line, beside the sampler's settings: plain values."""
    told = {key: getattr(args, key) for key in TOLD if getattr(args, key) not in (None, [])}
    return {
        key: value.as_posix() if isinstance(value, Path) else value for key, value in told.items()
    }
