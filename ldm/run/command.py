"""What several scripts take of their command line: which model, what of it, in which type."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.models.choices import Choices

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # --dtype -> torch's name


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Options for what a model given as --model does not bring, or is to have another of."""
    add = parser.add_argument_group("of --model").add_argument
    add("--tokenizer", metavar="FOLDER_OR_ID", help="of a single file, which holds none")
    add("--prediction-type", choices=("epsilon", "v_prediction"), help="where it does not say so")
    add("--vae", metavar="FOLDER_OR_FILE", help="another one, of the same latents")
    add("--clip-skip", type=int, metavar="N", help="last layers of the text encoder to pass over")
    add("--prompt-chunks", type=int, metavar="N", help="windows of 75 tokens that a prompt has")
    loras = "files of LoRA, added to its weights times WEIGHT (default: 1)"
    add("--lora", nargs="+", default=[], metavar="FILE[:WEIGHT]", help=loras)


def choices_of(args: argparse.Namespace, ema: bool = False) -> "Choices":
    """The options of `add_choices`; ema: a single file's averaged weights."""
    from ldm.models.choices import Choices  # torch comes with it: not for a --help
    from ldm.models.text import Reading

    reading = Reading(args.clip_skip or 0, args.prompt_chunks or 1)
    return Choices(args.tokenizer, args.prediction_type, ema, args.vae, reading)


def loras_of(args: argparse.Namespace) -> list[tuple[Path, float]]:
    """File and weight of each --lora. UserError: no such file."""
    from ldm.models.adapters.files import parse_lora

    return [parse_lora(text) for text in args.lora]


def given_choices(args: argparse.Namespace) -> list[str]:
    """Those options that were given."""
    options = {
        "--tokenizer": args.tokenizer,
        "--prediction-type": args.prediction_type,
        "--vae": args.vae,
        "--clip-skip": args.clip_skip,
        "--prompt-chunks": args.prompt_chunks,
        "--lora": args.lora or None,
    }
    return [option for option, value in options.items() if value is not None]
