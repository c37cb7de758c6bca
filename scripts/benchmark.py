"""Train and measure many subjects by one protocol, and write one table.

Every subject is a run of main.py below OUT/runs/METHOD. What is complete is kept, what was broken
off goes on, what fails is reported and the rest goes on: give the same command again at any time.
At the end OUT/table.md (read first), table.json, table.csv and sheet.png.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import flat, load_config, split_command_line
from ldm.errors import UserError
from ldm.study.command import EXECUTORS, finish, names_and_settings
from ldm.study.subjects import Subject, dreambench, write_overlay

EXAMPLES = """\
examples:
  python scripts/benchmark.py storybench --out bench/storybench
  python scripts/benchmark.py storybench --subjects robot_mint random:7:cat --out bench/few
  python scripts/benchmark.py storybench --random 8 --seed 100 --out bench/others
  python scripts/benchmark.py storybench --method slow --base configs/dreambooth.yaml \\
      training.learning_rate=5e-5 training.steps=600 --out bench/storybench
  python scripts/benchmark.py dreambench --data dreambooth/dataset --out bench/dreambench \\
      --executor slurm --options slurm_partition=gpu gpus_per_node=1 cpus_per_task=8
"""
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "main.py"
CONFIGS = {
    "storybench": ["configs/dreambooth.yaml"],
    "dreambench": ["configs/dreambooth.yaml", "configs/sd15.yaml"],
}
IMAGES = 4  # of each prompt, as in arXiv 2208.12242
OURS = ("name", "logs", "subject.pictures", "subject.class_noun")  # what the benchmark sets
NOTES = {
    "storybench": "Storybook subjects, 12 prompts of the oracle each, 4 pictures per prompt; "
    "likeness is to 20 pictures that training does not see.",
    "dreambench": "Subjects and 25 prompts each from google/dreambooth's own list, 4 pictures per "
    "prompt (arXiv 2208.12242). As in the paper, likeness is to all real pictures, which are also "
    "those trained on: it flatters, and copying counts as likeness.",
}
HALVES = (
    "Numbers are means over the half of the prompts that the snapshot was not chosen on, with 95 % "
    "intervals over subjects. Where no snapshot passed the gates the last one counts."
)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: `files` and `overrides` are the method's configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=CONFIGS)
    add("--data", type=Path, help="dreambench: a local copy of google/dreambooth")
    add("--subjects", nargs="+", default=[], metavar="NAME", help="only these; random:SEED[:NOUN]")
    add("--random", type=int, metavar="N", help="storybench: N subjects drawn at random")
    add("--seed", type=int, default=0, help="of the first one drawn (default: 0)")
    add("--method", default="default", metavar="NAME", help="what the runs are called in the table")
    add(
        "--base",
        nargs="+",
        default=[],
        metavar="YAML",
        help="configs of the method, then key=value",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="of runs and tables")
    add("--executor", choices=EXECUTORS, default="loop", help="local, slurm: submitit's jobs")
    add("--jobs", type=int, default=1, metavar="N", help="of local or slurm, how many at a time")
    add("--gpus", type=int, nargs="+", default=[], metavar="I", help="local: one for each job")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="submitit's parameters")
    add("overrides", nargs="*", metavar="key.sub=value", help="of the method")
    args = parser.parse_intermixed_args(words)
    args.subjects, settings = names_and_settings(args.subjects)
    args.files, args.overrides = split_command_line([*args.base, *args.overrides, *settings])
    args.files = args.files or [ROOT / file for file in CONFIGS[args.benchmark]]
    if (args.benchmark == "dreambench") != (args.data is not None):
        parser.error("--data FOLDER belongs to dreambench, which needs it")
    if args.random is not None and (args.subjects or args.benchmark == "dreambench"):
        parser.error("--random N belongs to storybench without --subjects")
    if args.jobs < 1 or (args.random is not None and args.random < 1):
        parser.error("--jobs and --random must be at least 1")
    return args


def storybook(names: Sequence[str], out: Path) -> list[Subject]:
    """Write the pictures of storybook subjects below OUT: "robot_mint", "random:7", ..."""
    from ldm.storybook.folder import find_subject, write_subject

    found = [find_subject(name) for name in names]
    return [Subject(one.name, one.noun, write_subject(one, out)) for one in found]


def subjects_of(args: argparse.Namespace) -> tuple[list[Subject], list[str]]:
    """The benchmark's subjects, their pictures written, and notes for the reader."""
    notes = [NOTES[args.benchmark], HALVES]
    if args.benchmark == "dreambench":
        subjects, missing = dreambench(args.data, args.subjects)
        if missing:
            notes.append(f"Not there, so left out: {', '.join(missing)}.")
        return subjects, notes
    from ldm.storybook import SUBJECTS

    drawn = [f"random:{args.seed + number}" for number in range(args.random or 0)]
    return storybook(args.subjects or drawn or list(SUBJECTS), args.out / "subjects"), notes


def tasks_of(args: argparse.Namespace, subjects: Sequence[Subject]) -> list[Any]:
    """A validated task per subject. UserError for what is configured wrongly."""
    from ldm.study.runs import Task

    if taken := [word for word in args.overrides if word.partition("=")[0].strip() in OURS]:
        raise UserError(f"{' '.join(taken)}: {', '.join(OURS)} are set by the benchmark")
    tasks = []
    for subject in subjects:
        overlay = write_overlay(subject, args.out / "subjects" / f"{subject.name}.yaml")
        files = [*args.files, overlay]
        overrides = [f"evaluation.images={IMAGES}", *args.overrides]
        if args.benchmark == "dreambench":
            overrides.insert(0, "evaluation.oracle=null")
        config = load_config(files, [*overrides, f"name={args.method}"])
        if config.evaluation is None:
            raise UserError("evaluation=null: a benchmark measures; leave the section in place")
        words = (*map(str, files), *overrides)
        folder = args.out / "runs" / args.method
        tasks.append(Task(subject.name, words, flat(config), folder, PROGRAM))
    return tasks


def run(args: argparse.Namespace) -> bool:
    """Do what is not done yet and write the tables; whether no subject failed."""
    from ldm.study.progress import followed
    from ldm.study.runs import alone, check_same, stoppable
    from ldm.study.sheet import write_sheet
    from ldm.study.spread import spread
    from ldm.study.table import write_tables

    options = option_values(args.options)
    with alone(args.out), stoppable():
        subjects, notes = subjects_of(args)
        tasks = tasks_of(args, subjects)
        check_same(tasks)
        write_method(args, tasks[0].config)
        at = {"jobs": args.jobs, "folder": args.out / "jobs", "gpus": args.gpus}
        with followed(args.benchmark, len(tasks)) as report:
            failed = []
            for outcome in spread(tasks, args.executor, options=options, **at):
                report(outcome)
                failed += [outcome] if outcome.state == "failed" else []
        rows, failures = write_tables(args.out, args.benchmark, notes)
        write_sheet(rows, args.out / "sheet.png")
    print(f"{len(rows)} subjects in the table, {len(failures)} failed")
    print(*(args.out / name for name in ("table.md", "table.csv", "sheet.png")), sep="\n")
    return not failed


def option_values(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words; numbers become numbers."""
    import yaml

    if wrong := [word for word in words if "=" not in word]:
        raise UserError(f"--options {' '.join(wrong)}: must be KEY=VALUE")
    return {key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in words)}


def write_method(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Write beside the method's runs what it is, for the tables."""
    from ldm.checkpoint.files import read_json, write_json
    from ldm.study.collect import METHOD

    file = args.out / "runs" / args.method / METHOD
    file.parent.mkdir(parents=True, exist_ok=True)
    before = read_json(file) or {}
    measured = {key: value for key, value in config.items() if key.startswith("evaluation.")}
    del measured["evaluation.root"], measured["evaluation.prompts"]  # a place; the subject's own
    about = {
        "command": ["python", *sys.argv],
        "date": before.get("date", datetime.now().isoformat(timespec="seconds")),
        "overrides": args.overrides,
        "evaluation": measured,
        "machine": {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
    }
    write_json(file, about)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
