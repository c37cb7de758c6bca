"""Train runs that are bad in a known way, and see that the metrics say so and the selector refuses.

OUT/known_bad.md (read first) and known_bad.json; runs lie below --runs. Give the same command again
to go on. Exit status 1 where something is not as declared in ldm/study/known_bad.py.
"""

import argparse
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import Config, flat, load_config, split_command_line
from ldm.errors import UserError
from ldm.study.command import EXECUTORS, finish, names_and_settings
from ldm.study.subjects import Subject, write_overlay
from scripts.benchmark import PROGRAM

EXAMPLES = """\
examples:
  python scripts/known_bad.py --subjects robot_mint dog_biscuit --out bench
  python scripts/known_bad.py --subjects random:7 --variants default base copies --out bench/few
"""


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--subjects", nargs="+", required=True, metavar="NAME", help="storybook; random:SEED[:NOUN]"
    )
    add("--variants", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    add("--base", nargs="+", default=[], metavar="YAML", help="configs, then key=value")
    add("--out", type=Path, default=Path("bench"), metavar="FOLDER", help="(default: bench)")
    add("--runs", type=Path, default=Path("logs/known_bad"), metavar="FOLDER", help="of the runs")
    add("--executor", choices=EXECUTORS, default="loop", help="local, slurm: submitit's jobs")
    add("--jobs", type=int, default=1, metavar="N", help="of local or slurm, how many at a time")
    add("overrides", nargs="*", metavar="key.sub=value", help="of all runs")
    args = parser.parse_intermixed_args(words)
    args.subjects, settings = names_and_settings(args.subjects)
    args.variants, more = names_and_settings(args.variants)
    words = [*args.base, *args.overrides, *settings, *more]
    args.files, args.overrides = split_command_line(words)
    args.files = args.files or [PROGRAM.parent / "configs" / "dreambooth.yaml"]
    return args


def variants_of(args: argparse.Namespace) -> list[str]:
    """The variants asked for, with those that they are compared with. UserError: unknown."""
    from ldm.study.known_bad import CONTROL, DEFAULT, VARIANTS

    if unknown := [name for name in args.variants if name not in VARIANTS]:
        raise UserError(f"--variants {' '.join(unknown)}: known are {', '.join(VARIANTS)}")
    wanted = {*args.variants, DEFAULT} if args.variants else {*VARIANTS}
    wanted |= {CONTROL} if "shuffled" in wanted else set()
    return [name for name in VARIANTS if name in wanted]


def pictures_of(subject: Any, name: str, runs: Path) -> Path:
    """A variant's folder of pictures: plain, with captions, or with those exchanged."""
    from ldm.storybook.folder import write_subject

    if name not in ("captions", "shuffled"):
        return write_subject(subject, runs / "subjects")
    right = write_subject(subject, runs / "subjects-captions", captions=True)
    if name == "captions":
        return right
    folder = write_subject(subject, runs / "subjects-shuffled")
    captions = sorted(right.glob("*.txt"))
    for place, caption in enumerate(captions):  # one on: settings differ, so that none is right
        text = captions[(place + 1) % len(captions)].read_text(encoding="utf-8")
        (folder / caption.name).write_text(text, encoding="utf-8")
    for caption in sorted((right / "heldout").glob("*.txt")):  # the held-out loss is alike
        (folder / "heldout" / caption.name).write_bytes(caption.read_bytes())
    return folder


def task_of(args: argparse.Namespace, subject: Any, name: str, config: Config) -> Any:
    """The run of a trained variant."""
    from ldm.storybook.oracle import questions
    from ldm.storybook.world import NOUNS
    from ldm.study.known_bad import words_for
    from ldm.study.runs import Task

    pictures = pictures_of(subject, name, args.runs)
    one = Subject(subject.name, subject.noun, pictures)
    overlay = write_overlay(one, pictures.with_name(f"{subject.name}.yaml"))
    other = NOUNS[(NOUNS.index(subject.noun) + 1) % len(NOUNS)]
    asked = [q.prompt for q in questions("[V]", subject.noun) if q.about == "subject"]
    bare = [prompt.replace(f"[V] {subject.noun}", "[V]") for prompt in asked]
    own = words_for(name, config.training.steps, other, bare)
    words = [*map(str, [*args.files, overlay]), *args.overrides, *own]
    flattened = flat(load_config(*split_command_line(words)))
    return Task(subject.name, tuple(words), flattened, args.runs / "runs" / name, PROGRAM)


def run(args: argparse.Namespace) -> bool:
    """Do what is not done yet and write the tables; whether all is as declared."""
    from ldm.storybook.folder import find_subject
    from ldm.study.known_bad import DEFAULT, MADE, Result, made_result, trained_result
    from ldm.study.known_bad_table import write_known_bad
    from ldm.study.progress import followed
    from ldm.study.runs import alone, check_same, runs_of, stoppable
    from ldm.study.spread import spread

    names, config = variants_of(args), load_config(args.files, args.overrides)
    if config.evaluation is None or not config.evaluation.oracle:
        raise UserError("evaluation.oracle: known-bad runs are judged by it; leave it in place")
    subjects = [find_subject(name) for name in args.subjects]
    with alone(args.runs), stoppable():
        trained = [name for name in names if name not in MADE]
        tasks = [task_of(args, one, name, config) for one in subjects for name in trained]
        check_same(tasks)
        failures = []
        with followed("known bad", len(tasks)) as report:
            where = {"jobs": args.jobs, "folder": args.runs / "jobs"}
            for outcome in spread(tasks, args.executor, **where):
                report(outcome)
                if outcome.state == "failed":
                    failures.append(f"{outcome.task.folder.name}, {outcome.task.name}")
        results: dict[str, dict[str, Result]] = {name: {} for name in names}
        for name in names:
            for one in subjects:
                kind = DEFAULT if name in MADE else name
                if f"{kind}, {one.name}" in failures:
                    continue
                latest = runs_of(args.runs / "runs" / kind, one.name)[-1]
                made = args.runs / "made" / name / one.name
                results[name][one.name] = (
                    made_result(name, latest, made) if name in MADE else trained_result(latest)
                )
        facts = {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now().isoformat(timespec="seconds"),
            "cores": os.cpu_count(),
            "subjects": [one.name for one in subjects],
        }
        good = write_known_bad(args.out, {k: v for k, v in results.items() if v}, facts, failures)
    print(args.out / "known_bad.md", args.out / "known_bad.json", sep="\n")
    print("all as declared" if good else "NOT all as declared, see the tables")
    return good


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
