"""Compare pictures along up to three axes, the same seeds in all cells.

KIND of an axis: snapshot, adapter (its weight), scale, steps, sampler, seed, or prompt, whose first
value is replaced by the others. Writes sheet.png, table.csv and cells/*.png; the same command again
draws only what is missing. Options of scripts/sample.py hold for every cell.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import UserError, exit_status
from ldm.run.drawing.options import add_options, given_options, problem_of

EXAMPLES = """\
examples:
  python scripts/grid.py --run logs/RUN --prompt "a drawing of [V] robot in the snow" \\
      --x scale=1,2.5,5 --y seed=1-3 --out logs/grids/scale
  python scripts/grid.py --run logs/RUN --prompt "a drawing of [V] robot in the snow" \\
      --x snapshot=300,600 --y "prompt=the snow,a city" --z sampler=ddim,euler --out logs/grids/b
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in (("x", "across"), ("y", "down"), ("z", "below each other")):
        text = f"{what}: as scale=1,5 or seed=1-4"
        parser.add_argument(f"--{name}", metavar="KIND=VALUES", required=name == "x", help=text)
    add_options(parser)
    args = parser.parse_args(words)
    problem = problem_of(args)
    if args.from_png or args.prompts_file or len(args.prompt) != 1:
        problem = "a grid has one --prompt; the axis prompt=... makes others of it"
    elif not args.out:
        problem = "give --out FOLDER"
    elif args.z and not args.y:
        problem = "--z comes after --y"
    if problem:
        parser.error(problem)
    return args


def compare(args: argparse.Namespace) -> Path:
    """Everything but reading the command line; where the sheet is."""
    from ldm.run.drawing.jobs import seeds_of
    from ldm.run.grid.axes import cells_of, check_axes, parse_axis

    given = given_options(args)
    axes = [parse_axis(f"--{name}", given[name]) for name in ("x", "y", "z") if name in given]
    check_axes(axes, args.prompt[0])
    kinds = {axis.kind for axis in axes}
    if clash := kinds & {"snapshot", "scale", "steps", "sampler", "seed"} & given.keys():
        raise UserError(f"--{clash.pop()} beside an axis of it: leave one of them out")
    if args.model and "snapshot" in kinds:
        raise UserError("an axis of snapshots needs --run; --model has none")
    if args.model and "adapter" in kinds and not args.lora:
        raise UserError("an axis of adapter weights needs --lora FILE beside --model")
    seeds = seeds_of(args.seed, args.n, usual=1)

    from ldm.run.grid.draw import Drawer
    from ldm.run.grid.finish import finish

    drawer, cells = Drawer(args, axes, args.prompt[0], seeds), cells_of(axes)
    drawer.draw(cells, args.out)
    return finish(args, axes, {cell: drawer.requests(cell) for cell in cells})


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: print(compare(args)))


if __name__ == "__main__":
    sys.exit(main())
