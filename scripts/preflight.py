"""Before a run: looks at pictures, identifier and class noun, recommends settings, tells the time.

Writes into --out: pictures.png (each with its crop and warnings), class_noun.png, identifiers.png
(what the untouched base draws) and recommended.yaml (an overlay, each number with its reason).
Exit status 2 only where training could not start.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import split_command_line
from ldm.errors import exit_status

EXAMPLES = """\
examples:
  python scripts/preflight.py --pictures my/dog --class-noun dog --suggest
  python scripts/preflight.py --pictures my/dog --class-noun dog --write my/dog_clean
  python scripts/preflight.py --pictures my/dog --class-noun dog --model owner/name
  python scripts/preflight.py --pictures my/dog --class-noun dog configs/sd15.yaml configs/lora.yaml
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: `files` and `overrides` are the configuration, options included."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pictures", required=True, metavar="FOLDER", help="of one subject")
    add("--class-noun", metavar="NOUN", help="what it is one of (default: the configuration's)")
    add("--identifier", metavar="WORD", help="that will name it (default: the configuration's)")
    add(
        "--model",
        metavar="WHAT",
        help="diffusers folder, single file or hub id (default: likewise)",
    )
    add("--out", type=Path, default=Path("preflight"), metavar="FOLDER", help="default: preflight")
    add("--write", type=Path, metavar="CLEAN_FOLDER", help="copy the pictures, mended, into it")
    add("--suggest", action="store_true", help="measure rare words that could be the identifier")
    draw = "pictures of the base (default: all but on a CPU with a base of 256 pixels or more)"
    add("--draw", action=argparse.BooleanOptionalAction, default=None, help=draw)
    add(
        "overrides",
        nargs="*",
        metavar="YAML|key.sub=value",
        help="on top of configs/dreambooth.yaml",
    )
    args = parser.parse_intermixed_args(words)
    args.files, args.overrides = split_command_line(args.overrides)
    given = {
        "subject.pictures": args.pictures,
        "subject.class_noun": args.class_noun,
        "subject.identifier": args.identifier,
        "model.base": args.model,
    }
    args.overrides += [f"{key}={value}" for key, value in given.items() if value is not None]
    return args


def check(args: argparse.Namespace) -> None:
    """All that was asked for."""
    from rich.console import Console

    from ldm.run.preflight.check import Wishes, preflight

    wishes = Wishes(args.out, args.write, args.suggest, args.draw)
    preflight(args.files, args.overrides, wishes, Console())


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: check(args))


if __name__ == "__main__":
    sys.exit(main())
