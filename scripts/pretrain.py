"""Train the embedded base and its oracle from scratch: renders -> data/storybook-sd, -oracle."""

import argparse
import logging
import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import UserError, exit_status

EXAMPLES = """\
examples:
  python scripts/pretrain.py --config configs/pretrain/storybook.yaml
  python scripts/pretrain.py --config configs/pretrain/storybook.yaml --stage oracle
  python scripts/pretrain.py --config configs/pretrain/storybook.yaml seed=1 \\
      start_from=data/storybook-sd base=data/cache/storybook-sd-next work=logs/pretrain-next

A stage that was interrupted goes on from its last saved step.
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML")
    stages = (
        "vae",
        "decoder",
        "tokenizer",
        "latents",
        "diffusion",
        "oracle",
        "recognition",
        "score",
    )
    parser.add_argument("--stage", choices=stages, help="only this one (default: all in order)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    return parser.parse_intermixed_args(words)


def pretrain(args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ldm.storybook.pretraining.settings import PretrainSettings
    from ldm.storybook.pretraining.stages import STAGES

    if not args.config.is_file():
        raise UserError(f"--config {args.config}: no such file")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(PretrainSettings),
            OmegaConf.load(args.config),
            OmegaConf.from_dotlist(args.overrides),
        )
        settings = cast(PretrainSettings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise UserError(f"{args.config}: {str(error).splitlines()[0]}") from error
    Path(settings.work).mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        if args.stage in (None, name):
            logging.getLogger("ldm").info("stage %s", name)
            stage(settings)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    return exit_status(lambda: pretrain(args))


if __name__ == "__main__":
    sys.exit(main())
