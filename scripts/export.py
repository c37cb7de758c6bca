"""Write a trained run, or any model, in a form that other tools open.

diffusers: a folder for `from_pretrained`, with a model card. single-file: one .safetensors with the
original names, for A1111, ComfyUI, sdnext, InvokeAI. What opens where: docs/formats.md.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status
from ldm.run.command import add_choices, choices_of, given_choices

EXAMPLES = """\
examples:
  python scripts/export.py --run logs/RUN --format single-file --dtype fp16
  python scripts/export.py --run logs/RUN --snapshot 200 --format diffusers --out models/mine
  python scripts/export.py --model model.safetensors --format diffusers --out models/theirs
  python scripts/export.py --run logs/RUN --format diffusers --push OWNER/NAME
"""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FORMATS = ("diffusers", "single-file")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder below logs/")
    source.add_argument("--model", metavar="WHAT", help="diffusers folder, single file or hub id")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("--snapshot", metavar="best|last|STEP", help="of the run (default: best)")
    add("--ema", action="store_true", help="the averaged weights: of the snapshot, or in a file")
    add("--dtype", choices=DTYPES, default="fp32", help="of the tensors (default: fp32)")
    add("--out", type=Path, metavar="PATH", help="(default: export-FORMAT in the run)")
    add("--push", metavar="OWNER/NAME", help="upload it to the hub as well (HF_TOKEN is used)")
    add_choices(parser)
    args = parser.parse_args(words)
    if args.model and args.snapshot:
        parser.error("--snapshot belongs to --run")
    if args.run and (given := given_choices(args)):
        parser.error(f"{given[0]} belongs to --model; a run has its own configuration")
    return args


def export(args: argparse.Namespace) -> list[str]:
    """Everything but reading the command line; where the model is."""
    import torch

    from ldm.run.export import FORMATS as WRITERS
    from ldm.run.export import of_model, of_run, place_of
    from ldm.run.folder import read_config
    from ldm.run.push import check_name, push

    if args.push:
        check_name(args.push)
    source = read_config(args.run).model.base if args.run else args.model
    out = place_of(args.format, args.out, args.run, source)
    if args.run:
        exported = of_run(args.run, args.snapshot or "best", args.ema)
    else:
        exported = of_model(args.model, choices_of(args, args.ema))
    written = WRITERS[args.format](exported, out, getattr(torch, DTYPES[args.dtype]))
    return [str(written), *([push(written, args.push)] if args.push else [])]


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: print(*export(args), sep="\n"))


if __name__ == "__main__":
    sys.exit(main())
