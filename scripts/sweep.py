"""Search configurations: train and measure, take the highest fidelity within the gates.

Fidelity is the mean over the subjects, on the half of the prompts that snapshots are chosen on; the
other half stays for reporting. Between subjects, trials that do worse than the others are stopped.
Give the same command again to go on, or at the same time in another terminal or on another machine
that sees OUT: the trials are shared. OUT/winner.yaml is an overlay for main.py; OUT/sweep.png shows
what mattered, OUT/trials.csv lists all.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import flat, load_config, split_command_line
from ldm.errors import UserError
from ldm.study.command import finish, names_and_settings
from ldm.study.space import corners, overrides, read_space, within
from ldm.study.subjects import Subject, write_overlay
from scripts.benchmark import PROGRAM, storybook

EXAMPLES = """\
examples:
  python scripts/sweep.py --base configs/dreambooth.yaml training.learning_rate=1e-5..3e-4,log \\
      training.steps=100..600,100 'prior.target=data|base' --trials 20 --out logs/sweep
  python scripts/sweep.py --base configs/dreambooth.yaml training.learning_rate=1e-5..3e-4,log \\
      --subjects robot_mint dog_biscuit cat_plum car_comet --trials 30 --out logs/sweep4
  python scripts/sweep.py --base configs/dreambooth.yaml configs/sd15.yaml \\
      training.learning_rate=5e-7..1e-5,log --subjects my/dog:dog my/toy:toy --out logs/sweep15
"""
OURS = ("name", "logs", "subject.pictures", "subject.class_noun")  # what the sweep sets


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", nargs="+", default=[], metavar="YAML", help="configs, then ranges and key=value")
    add("--subjects", nargs="+", default=[], metavar="WHAT", help="FOLDER:NOUN or storybook names")
    add("--trials", type=int, default=20, metavar="N", help="in all (default: 20)")
    add("--seed", type=int, default=0, help="of the search (default: 0)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="of runs and results")
    add(
        "words", nargs="*", metavar="key=RANGE", help="LOW..HIGH[,log|,STEP], one|other, or a value"
    )
    args = parser.parse_intermixed_args(words)
    args.subjects, settings = names_and_settings(args.subjects)
    args.files, args.words = split_command_line([*args.base, *args.words, *settings])
    if not args.files:
        parser.error("give --base configs/dreambooth.yaml")
    if args.trials < 1:
        parser.error("--trials must be at least 1")
    return args


def subjects_of(args: argparse.Namespace, config: Any) -> list[Subject]:
    """Folders with their class nouns, or storybook subjects by name; by default the config's."""
    if not args.subjects:
        pictures = Path(config.subject.pictures)
        return [Subject(pictures.name, config.subject.class_noun, pictures)]
    found = []
    for what in args.subjects:
        folder, _, noun = what.rpartition(":") if ":" in what else (what, "", "")
        if Path(folder).is_dir():
            noun = noun or config.subject.class_noun
            found.append(Subject(Path(folder).resolve().name, noun, Path(folder)))
        else:
            found += storybook([what], args.out / "subjects")
    if len({one.name for one in found}) < len(found):
        raise UserError(f"--subjects {' '.join(args.subjects)}: two have the same name")
    return found


def tasks_of(
    args: argparse.Namespace,
    subjects: list[Subject],
    fixed: list[str],
    parameters: Mapping[str, Any],
    folder: Path,
) -> list[Any]:
    """A task per subject with the parameters of a trial."""
    from ldm.study.runs import Task

    tasks = []
    for subject in subjects:
        overlay = args.out / "subjects" / f"{subject.name}.yaml"
        words = [*map(str, [*args.files, overlay]), *fixed, *overrides(parameters)]
        config = flat(load_config(*split_command_line(words)))
        tasks.append(Task(subject.name, tuple(words), config, folder, PROGRAM))
    return tasks


def run(args: argparse.Namespace) -> bool:
    """Search and write what was found; False where no trial passed and no other is at work."""
    from ldm.study.findings import PICTURE, TABLE, WINNER, write_findings
    from ldm.study.runs import stoppable
    from ldm.study.sweep import Sweep

    space, fixed = read_space(args.words)
    if taken := [key for key in (*space, *(w.partition("=")[0] for w in fixed)) if key in OURS]:
        raise UserError(f"{', '.join(taken)}: {', '.join(OURS)} are set by the sweep")
    config = load_config(args.files, fixed)
    measures = config.evaluation
    if measures is None or not (measures.oracle or measures.dino or measures.clip):
        raise UserError("evaluation: a sweep measures fidelity; set oracle, dino or clip of it")
    for words in corners(space):
        load_config(args.files, [*fixed, *words])  # every end and choice is allowed
    subjects = subjects_of(args, config)
    conditions = {"configuration": flat(config), "subjects": [one.name for one in subjects]}
    tasks = partial(tasks_of, args, subjects, fixed)
    sweep = Sweep(args.out, space, tasks, conditions, args.trials, args.seed)
    study = sweep.open(within(space, flat(config)))
    with sweep.locked():
        for subject in subjects:
            write_overlay(subject, args.out / "subjects" / f"{subject.name}.yaml")
    command = shlex.join(["python", *sys.argv])
    used_with = shlex.join([*map(str, args.files), *fixed])

    def report(trial: Any, words: str) -> None:
        print(f"trial {trial.number}: {' '.join(overrides(trial.params))}: {words}", flush=True)

    with stoppable():
        try:
            sweep.run(study, report)
        finally:
            with sweep.locked():
                print(write_findings(study, space, args.out, command, used_with))
    files = (args.out / name for name in (WINNER, PICTURE, TABLE))
    print(*(file for file in files if file.exists()), sep="\n")
    others = any(trial.state.name == "RUNNING" for trial in study.get_trials())
    return others or (args.out / WINNER).exists()


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    return finish(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
