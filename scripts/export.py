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
    add("--run", type=Path, required=True, help="run folder below logs/")
    add("--format", choices=FORMATS, required=True, help="what to write")
    add("--snapshot", default="best", metavar="best|last|STEP", help="(default: best)")
    add("--ema", action="store_true", help="of the snapshot the moving average of the weights")
    add("--rank", type=int, metavar="N", help="lora, kohya: extract one of this rank by SVD")
    add("--dtype", choices=DTYPES, default="fp32", help="of the tensors (default: fp32)")
    add("--out", type=Path, metavar="FOLDER", help="(default: RUN/export-FORMAT)")
    args = parser.parse_args(words)
    if args.rank is not None and args.rank < 1:
        parser.error(f"--rank {args.rank}: at least 1")
    if args.rank is not None and args.format == "embedding":
        parser.error("--rank belongs to lora and kohya")
    return args


def export(args: argparse.Namespace) -> list[Path]:
    """Everything but reading the command line; the files written."""
    import torch

    from ldm.export import write_files
    from ldm.run.trained import load_trained

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
