"""Write a run's model in a form that other tools open.

lora: what diffusers and peft open; kohya: one file for A1111, ComfyUI and the like; of a run that
trained all weights with --rank N, the LoRA that comes nearest. embedding: the identifier's token
alone, for runs that trained the text encoder or its embedding.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status

if TYPE_CHECKING:
    from ldm.export.lora import Files
    from ldm.run.trained import Trained

EXAMPLES = """\
examples:
  python scripts/export.py --run logs/RUN --format lora
  python scripts/export.py --run logs/RUN --format kohya --dtype fp16 --out models/lora
  python scripts/export.py --run logs/RUN --format kohya --rank 32
  python scripts/export.py --run logs/RUN --format embedding --snapshot last
  python scripts/export.py --model owner/name --merge a.safetensors:0.7 b.safetensors:0.5 --out both
"""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def lora(trained: "Trained", args: argparse.Namespace) -> "Files":
    from ldm.run.exports import lora_files

    return lora_files(trained, args.run, args.rank)


def kohya(trained: "Trained", args: argparse.Namespace) -> "Files":
    from ldm.run.exports import kohya_files

    return kohya_files(trained, args.run, args.rank)


def embedding(trained: "Trained", args: argparse.Namespace) -> "Files":
    from ldm.run.exports import embedding_files

    return embedding_files(trained)


FORMATS: Mapping[str, Callable[["Trained", argparse.Namespace], "Files"]] = {
    "lora": lora,
    "kohya": kohya,
    "embedding": embedding,
}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder below logs/")
    source.add_argument("--model", metavar="FOLDER_OR_ID", help="what --merge adds to")
    add("--merge", nargs="+", default=[], metavar="FILE[:WEIGHT]", help="LoRA files, into --model")
    add("--format", choices=FORMATS, help="of --run: what to write; a merge is a diffusers folder")
    add("--snapshot", default="best", metavar="best|last|STEP", help="(default: best)")
    add("--ema", action="store_true", help="of the snapshot the moving average of the weights")
    add("--rank", type=int, metavar="N", help="lora, kohya: extract one of this rank by SVD")
    add("--dtype", choices=DTYPES, default="fp32", help="of the tensors (default: fp32)")
    add("--out", type=Path, metavar="FOLDER", help="(default: RUN/export-FORMAT)")
    args = parser.parse_args(words)
    if args.run and (args.merge or not args.format):
        parser.error("--run takes --format, and no --merge")
    if args.model and (not args.merge or not args.out or args.format):
        parser.error("--model takes --merge FILE ... and --out FOLDER, and no --format")
    if args.rank is not None and args.rank < 1:
        parser.error(f"--rank {args.rank}: at least 1")
    if args.rank is not None and args.format == "embedding":
        parser.error("--rank belongs to lora and kohya")
    return args


def merge(args: argparse.Namespace) -> list[Path]:
    """A diffusers folder of --model with the LoRA files in it."""
    import torch

    from ldm.export import export_folder
    from ldm.models.adapters.files import add_lora_files, parse_lora
    from ldm.models.base import load_base

    files = [parse_lora(text) for text in args.merge]
    base = load_base(args.model)
    add_lora_files(base, files)
    about = {"base": args.model, "merged": args.merge}
    return [export_folder(base, args.out, getattr(torch, DTYPES[args.dtype]), about)]


def export(args: argparse.Namespace) -> list[Path]:
    """Everything but reading the command line; the files written."""
    import torch

    from ldm.export import write_files
    from ldm.run.trained import load_trained

    if args.model:
        return merge(args)
    trained = load_trained(args.run, args.snapshot, ema=args.ema)
    out = args.out or args.run / f"export-{args.format}"
    files = FORMATS[args.format](trained, args)
    write_files(out, files, getattr(torch, DTYPES[args.dtype]))
    return [out / name for name in files]


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: print(*export(args), sep="\n"))


if __name__ == "__main__":
    sys.exit(main())
