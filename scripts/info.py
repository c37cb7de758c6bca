"""What files say of themselves: pictures, runs, snapshots, resume states, models and adapters.

No weights are loaded. Of a picture: how it was drawn. Of a .safetensors file: its header.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_status

EXAMPLES = """\
examples:
  python scripts/info.py logs/RUN/samples/step-000300.png
  python scripts/info.py logs/RUN logs/RUN/snapshots/step-000300 logs/RUN/resume.ckpt
  python scripts/info.py lora.safetensors --json
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="or folder")
    parser.add_argument(
        "--json", action="store_true", help="one object: what each says by its path"
    )
    return parser.parse_args(words)


def show(args: argparse.Namespace) -> None:
    """Print what each says."""
    from ldm.run.info import as_text, tell

    told = {str(path): tell(path) for path in args.files}
    if args.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(as_text({path: about}) for path, about in told.items()))


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = parse(words)
    return exit_status(lambda: show(args))


if __name__ == "__main__":
    sys.exit(main())
