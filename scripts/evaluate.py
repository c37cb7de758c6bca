"""Measure finished runs, or any models, and compare several.

A run keeps its numbers, its choice and its report in its own folder, models get folders below
--out; several are put side by side there: compare.html, compare.json, compare.csv.
"""

import argparse
import logging
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import split_command_line
from ldm.errors import exit_status
from ldm.run.command import add_choices, choices_of, given_choices

EXAMPLES = """\
examples:
  python scripts/evaluate.py --run logs/RUN
  python scripts/evaluate.py --run logs/RUN1 logs/RUN2 --out logs/compared
  python scripts/evaluate.py --run logs/RUN evaluation.images=8
  python scripts/evaluate.py --model logs/RUN/export
  python scripts/evaluate.py --model models/ --out logs/models
  python scripts/evaluate.py --model owner/name --base owner/base --identifier sks \\
      --class-noun dog --pictures my/dog configs/dreambooth.yaml configs/sd15.yaml
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: `files` and `overrides` are what stands beside the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", nargs="+", default=[], metavar="RUN", help="run folders")
    source.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="FOLDER_OR_ID",
        help="diffusers folders, folders of such folders, single files, hub ids",
    )
    add("--identifier", metavar="WORD", help="of models: what names the subject")
    add("--class-noun", metavar="NOUN", help="of models: what the subject is one of")
    add("--base", metavar="FOLDER_OR_ID", help="of models: what they were trained from")
    add("--pictures", type=Path, metavar="FOLDER", help="of the subject of models")
    add("--out", type=Path, metavar="FOLDER", help="of models and comparisons (default: logs/...)")
    add("--device", help="cuda, cuda:1, xpu, mps, cpu (default: what there is)")
    add("overrides", nargs="*", metavar="key.sub=value", help="configuration, as for main.py")
    add_choices(parser)
    args = parser.parse_intermixed_args(words)
    rest = [*args.overrides]
    if args.run:
        args.run, more = _parted(args.run)
    else:
        args.model, more = _parted(args.model)
    args.files, args.overrides = split_command_line([*more, *rest])
    if args.run and args.files:
        parser.error(f"{args.files[0]}: a run has its own configuration; give key=value")
    told = (args.identifier, args.class_noun, args.base, args.pictures)
    if args.run and (any(told) or given_choices(args)):
        options = "--identifier, --class-noun, --base, --pictures, --tokenizer, --prediction-type"
        parser.error(f"{options} and --vae belong to --model")
    return args


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """What an option that takes several words has taken: folders and ids, then configuration."""
    rest = [word for word in words if word.endswith(".yaml") or ("=" in word)]
    return [word for word in words if word not in rest], rest


def evaluate(args: argparse.Namespace) -> list[Path]:
    """Measure everything that was asked for; the folders with the results."""
    from rich.console import Console

    from ldm.evaluation.compare import compare, comparison_table
    from ldm.evaluation.report.side_by_side import write_comparison
    from ldm.run.device import device_of
    from ldm.run.finish import print_result
    from ldm.run.measure.again import Told, check_models, find_models, measure_model, measure_run

    device, console = device_of(args.device), Console()
    out = args.out or Path("logs") / f"compared_{datetime.now():%Y-%m-%dT%H-%M-%S}"
    folders = []
    for run in map(Path, args.run):
        result = measure_run(run, args.overrides, device)
        print_result(result, max(map(int, result["snapshots"])), console)
        folders.append(run)
    told = Told(args.identifier, args.class_noun, args.base, args.pictures, choices_of(args))
    models = check_models(find_models(args.model), out, told, args.files, args.overrides)
    folders += [measure_model(model, device) for model in models]
    if len(folders) > 1:
        comparison = compare(folders)
        console.print(comparison_table(comparison))
        return write_comparison(comparison, out)[:1]
    return [folder / "report.html" for folder in folders]


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    try:
        return exit_status(lambda: print(*evaluate(args), sep="\n"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell counts


if __name__ == "__main__":
    sys.exit(main())
