"""Make pictures with a trained run, a diffusers folder, a single file or a hub id.

PNGs carry their settings; `grid-*.png` shows them all, prompts in rows and seeds in columns.
--from-png draws such a picture again, with whatever is given beside it in place of its own.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status
from ldm.run.drawing.options import PLACES, add_options, given_options, problem_of, with_own

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.run.drawing.jobs import Job
    from ldm.run.drawing.ready import Ready

EXAMPLES = """\
examples:
  python scripts/sample.py --run logs/RUN --prompt "a drawing of [V] robot on the beach"
  python scripts/sample.py --run logs/RUN --snapshot 200 --prompts-file prompts.txt --seed 1-8,20
  python scripts/sample.py --model owner/name --lora dog.safetensors:0.8 --prompt "a sks dog"
  python scripts/sample.py --model data/storybook-sd --prompt "a drawing of a red dog in the snow"
  python scripts/sample.py --run logs/RUN --prompt "a (tiny:1.3) [V] robot in the {snow|rain}"
  python scripts/sample.py --run logs/RUN --prompt "[V] robot" --init-image a.png --mask b.png
  python scripts/sample.py --from-png logs/RUN/samples/PICTURE.png --steps 50
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is not given is None, or an empty list."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    args = parser.parse_args(words)
    if problem := problem_of(args):
        parser.error(problem)
    return args


def make_pictures(ready: "Ready", jobs: "list[Job]", wanted: range) -> "list[tuple[Path, Image]]":
    """Draw the jobs; save and return the `wanted` ones."""
    from rich.console import Console
    from rich.progress import track

    from ldm.run.drawing.files import first_number, save

    drawn = ready.draw(jobs)
    number = first_number(ready.source.out)
    made: list[tuple[Path, Image]] = []
    console = Console(stderr=True)
    for place, (picture, told) in enumerate(track(drawn, "pictures", len(jobs), console=console)):
        if place in wanted:
            path = ready.source.out / f"{number + len(made):05d}-seed{told['seed']}.png"
            made.append((save(picture, path, told), picture))
    return made


def make_all(ready: "Ready", prompts: list[str], seeds: list[int]) -> list[Path]:
    """Every prompt with every seed, and their grid."""
    from ldm.run.drawing.files import save_grid

    jobs = ready.jobs(prompts, seeds)
    made = make_pictures(ready, jobs, range(len(jobs)))
    paths, pictures = [path for path, _ in made], [picture for _, picture in made]
    grid = paths[0].with_name(f"grid-{paths[0].name[:5]}.png")
    settings = {**ready.settings, **ready.source.provenance}
    return [*paths, save_grid(pictures, grid, prompts, seeds, settings)]


def sample(args: argparse.Namespace) -> list[Path]:
    """Everything but reading the command line; return the files written, the grid last."""
    from ldm.run.drawing.jobs import prompts_of, seeds_of

    seeds = seeds_of(args.seed, args.n)
    templates = prompts_of(args.prompt, args.prompts_file)

    from ldm.run.drawing.ready import make_ready

    ready = make_ready(args, len(seeds) * len(templates))
    return make_all(ready, ready.filled(templates), seeds)


def sample_again(args: argparse.Namespace) -> list[Path]:
    """The picture of --from-png; bit for bit where nothing beside it changes it."""
    from ldm.run.drawing.again import recall
    from ldm.run.drawing.jobs import prompts_of, seeds_of
    from ldm.run.drawing.ready import make_ready

    given = given_options(args)
    recalled = recall(args.from_png, given)
    args, exact = with_own(args, recalled.options), given.keys() <= {*PLACES}
    seeds = seeds_of(args.seed, args.n, usual=1, first=recalled.job.seed)
    new = args.prompt or args.prompts_file
    templates = prompts_of(args.prompt, args.prompts_file) if new else [recalled.job.prompt]
    ready = make_ready(args, len(recalled.together) if exact else len(seeds) * len(templates))
    recalled.check_model(ready.source.provenance["fingerprint"], given)
    if not exact:
        return make_all(ready, ready.filled(templates), seeds)
    recalled.tell_of_differences(ready.source.base.device, ready.source.provenance["dtype"])
    wanted = range(recalled.place, recalled.place + 1)
    return [path for path, _ in make_pictures(ready, recalled.together, wanted)]


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    draw = sample_again if args.from_png else sample
    return exit_status(lambda: print(*draw(args)[-1:]))


if __name__ == "__main__":
    sys.exit(main())
