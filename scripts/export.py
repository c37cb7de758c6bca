"""Write a trained run, or any model, in a form that other tools open.

diffusers: a folder for `from_pretrained`, with a model card. single-file: one .safetensors with the
original names, for A1111, ComfyUI, sdnext, InvokeAI. lora: an adapter as diffusers and peft open
it; kohya: as one file for the tools above; of a run that trained all weights, with --rank N, the
LoRA that comes nearest. embedding: the identifier's token alone. What opens where: docs/formats.md.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status
from ldm.run.command import DTYPES, add_choices, choices_of, given_choices, loras_of

EXAMPLES = """\
examples:
  python scripts/export.py --run logs/RUN --format single-file --dtype fp16
  python scripts/export.py --run logs/RUN --snapshot 200 --format diffusers --out models/mine
  python scripts/export.py --model model.safetensors --format diffusers --out models/theirs
  python scripts/export.py --run logs/RUN --format diffusers --push OWNER/NAME
  python scripts/export.py --run logs/RUN --format lora
  python scripts/export.py --run logs/RUN --format kohya --rank 32 --dtype fp16
  python scripts/export.py --model owner/name --lora a.safetensors:0.7 b.safetensors:0.5 \\
      --format single-file --out models/both.safetensors
"""
FORMATS = ("diffusers", "single-file", "lora", "kohya", "embedding")


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
    add("--rank", type=int, metavar="N", help="lora, kohya: extract one of this rank by SVD")
    add("--dtype", choices=DTYPES, default="fp32", help="of the tensors (default: fp32)")
    add("--out", type=Path, metavar="PATH", help="(default: export-FORMAT in the run)")
    add("--push", metavar="OWNER/NAME", help="upload it to the hub as well (HF_TOKEN is used)")
    add_choices(parser)
    args = parser.parse_args(words)
    if args.model and (args.snapshot or args.rank or args.format not in FORMATS[:2]):
        option = "--snapshot" if args.snapshot else "--rank" if args.rank else args.format
        parser.error(f"{option} belongs to --run")
    if args.rank is not None and args.rank < 1:
        parser.error(f"--rank {args.rank}: at least 1")
    if args.rank is not None and args.format not in ("lora", "kohya"):
        parser.error("--rank belongs to lora and kohya")
    if args.run and (given := given_choices(args)):
        parser.error(f"{given[0]} belongs to --model; a run has its own configuration")
    return args


def export(args: argparse.Namespace) -> list[str]:
    """Everything but reading the command line; where the model is."""
    import torch

    from ldm.run.export.formats import FORMATS as WRITERS
    from ldm.run.export.formats import of_model, of_run, place_of
    from ldm.run.export.push import check_name, push
    from ldm.run.folder import read_config

    if args.push:
        check_name(args.push)
    source = read_config(args.run).model.base if args.run else args.model
    out = place_of(args.format, args.out, args.run, source)
    if args.run:
        exported = of_run(args.run, args.snapshot or "best", args.ema, args.rank)
    else:
        exported = of_model(args.model, choices_of(args, args.ema), loras_of(args))
    WRITERS[args.format](exported, out, getattr(torch, DTYPES[args.dtype]))
    return [str(out), *([push(out, args.push)] if args.push else [])]


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: print(*export(args), sep="\n"))


if __name__ == "__main__":
    sys.exit(main())
