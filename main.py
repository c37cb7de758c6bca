"""Teach a Stable Diffusion model one subject from a few pictures, and measure what it learnt."""

import argparse
import contextlib
import logging
import sys
import warnings
from datetime import datetime
from pathlib import Path

from ldm.config import Config, load_config, split_command_line, to_yaml
from ldm.errors import exit_status

log = logging.getLogger("ldm.main")

EXAMPLES = """\
examples:
  python main.py --base configs/dreambooth.yaml
  python main.py --base configs/dreambooth.yaml subject.pictures=my/dog subject.class_noun=dog
  python main.py --base configs/dreambooth.yaml configs/low_memory.yaml training.steps=400 --dry-run
  python main.py --resume logs/2026-01-31T10-20-30_robot
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: `files` and `overrides` are what stands beside the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", nargs="+", default=[], metavar="YAML", help="configs, merged left to right")
    add("--name", help="ends the run folder's name (default: the class noun)")
    add("--dry-run", action="store_true", help="print the merged config and the plan, then stop")
    add("--resume", type=Path, metavar="RUN", help="go on with a run folder")
    add("overrides", nargs="*", metavar="key.sub=value", help="on top of the configs")
    args = parser.parse_intermixed_args(words)
    args.files, args.overrides = split_command_line([*args.base, *args.overrides])
    if not args.files and not args.resume:
        parser.error("give --base configs/dreambooth.yaml, or --resume with a run folder")
    if args.name is not None:
        args.overrides.append(f"name={args.name}")
    return args


def configured(args: argparse.Namespace) -> Config:
    """The validated configuration; loads no library that takes long."""
    if args.resume is None:
        return load_config(args.files, args.overrides)
    from ldm.run.resume import resumed_config

    return resumed_config(args.resume, args.files, args.overrides)


def train(args: argparse.Namespace) -> None:
    """One run, from the command line to the report."""
    config = configured(args)
    if args.dry_run:
        show_plan(config, args.resume)
        return

    from ldm.run import build, facts, finish, folder, resume
    from ldm.run.preflight.pictures import picture_warnings
    from ldm.run.prepare import prepare

    with contextlib.ExitStack() as held:
        start, first = None, folder.is_first_process(config)
        if args.resume:
            if first:
                held.enter_context(folder.claimed(args.resume))
            start = resume.resume_point(args.resume, config)
            if lines := resume.finished_lines(args.resume, config, start):
                print(*lines, *finish.report_lines(args.resume), sep="\n")
                return

        ready = prepare(config)
        run = args.resume or folder.new_run(config, datetime.now())
        about = facts.run_facts(config, ready)
        if args.resume:
            resume.check_unchanged(run, about)
        for line in picture_warnings(config, ready) if first and not args.resume else ():
            log.warning("%s", line)
        job = build.build_job(config, ready, run, start)
        if first:
            if args.resume:
                resume.go_on(run, config, about, start)
            else:
                folder.create_run(run, config, about)
                held.enter_context(folder.claimed(run))

        held.enter_context(job)  # last: it ends while the folder is claimed
        finished = job.fit()  # class images first: each process makes its share of them
        if finished and job.trainer.is_global_zero and finish.conclude(config, run, ready, job):
            print(*finish.report_lines(run), sep="\n")


def show_plan(config: Config, resumed: Path | None) -> None:
    """Print the merged config and what a run would do; nothing is made."""
    from ldm.run import folder
    from ldm.run.plan import plan_lines
    from ldm.run.prepare import prepare

    ready = prepare(config)
    run = resumed or folder.new_run(config, datetime.now())
    print(to_yaml(config), *plan_lines(config, ready, run), sep="\n")


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", message=".*You have overridden `on_before_batch_transfer`.*")
    logging.getLogger("ldm").setLevel(logging.INFO)
    args = parse(words)
    try:
        return exit_status(lambda: train(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell counts


if __name__ == "__main__":
    sys.exit(main())
