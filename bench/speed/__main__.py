"""Measure the project beside its peers, in one run on one machine.

    python -m bench.speed                                    # beside the bare networks alone
    python -m bench.speed --diffusers CHECKOUT --python PYTHON

CHECKOUT is a checkout of diffusers' sources (its training script is run from there), PYTHON an
interpreter that has what that script imports, torchvision among it. Results are kept in
bench/speed.json and as a table in bench/speed.md; what was there before is compared with.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.speed.contenders import Place, fp32_copy, pictures_of, repeated
from bench.speed.measure import ROOT
from bench.speed.works import GROUPS, LONG, USUAL, Row

RECORD, TABLE = ROOT / "bench" / "speed.json", ROOT / "bench" / "speed.md"
PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers")


def machine() -> str:
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {os.cpu_count()} cores"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def as_record(row: Row, command: str) -> dict[str, Any]:
    return {
        "work": row.work,
        "against": row.against,
        "ours": round(row.ours, 4),
        "peer": round(row.peer, 4),
        "ratio": round(row.ratio, 3),
        "target": row.target,
        "better": "more" if row.at_least else "less",
        "met": row.met,
        "unit": row.unit,
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
        "command": command,
    }


def merged(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New records in the place of those of the same work and peer."""
    fresh = {(one["work"], one["against"]): one for one in new}
    kept = [fresh.pop((one["work"], one["against"]), one) for one in known]
    return kept + list(fresh.values())


def table(records: list[dict[str, Any]]) -> str:
    lines = [HEAD.format(machines="; ".join(sorted({one["machine"] for one in records})))]
    for one in records:
        sign = "&ge;" if one["better"] == "more" else "&le;"
        target = "" if one["target"] is None else f"{sign} {one['target']}"
        met = {True: "yes", False: "no", None: ""}[one["met"]]
        ours, peer = (f"{one[side]:.3g} {one['unit']}" for side in ("ours", "peer"))
        lines.append(
            f"| {one['work']} | {one['against']} | {ours} | {peer} | {one['ratio']:.2f} | "
            f"{target} | {met} | {one['date']} |"
        )
    return "\n".join(lines) + "\n"


HEAD = """\
# Speed and memory, side by side

`python -m bench.speed --diffusers CHECKOUT --python PYTHON` (the command of each row stands in
[speed.json](speed.json)); {machines}. All contenders run in turn, each a process of its own, on
the same base (`data/storybook-sd`, weights in float32), pictures, batch, precision and steps; a
ratio is the median over rounds. Where more is better it is peer / ours, where less is better
ours / peer. "Bare networks" are forward, backward and optimizer of UNet and text encoder on tensors
in memory (for pictures: UNet and VAE calls alone), the most that can be asked for. Memory of many
class pictures and of saves is that which no file is mapped into, looked at 50 times a second.
Times of one contender scatter by a tenth and more from round to round here, and so do ratios: one
that beats the bare networks does not say more than that it is near them.

| work | beside | ours | peer | ratio | target | met | date |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--diffusers", type=Path, metavar="CHECKOUT")
    add("--python", type=Path, default=Path(sys.executable))
    add("--only", nargs="+", choices=GROUPS, default=USUAL, help=f"default: all but {LONG}")
    add("--rounds", type=int, default=3)
    args = parser.parse_args()
    command = "python -m bench.speed " + " ".join(
        (["--diffusers CHECKOUT --python PYTHON"] if args.diffusers else [])
        + [f"--only {' '.join(args.only)}", f"--rounds {args.rounds}"]
    )
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pictures = pictures_of(ROOT / "data" / "subjects" / "robot_volt", folder / "pictures")
        place = Place(
            folder,
            fp32_copy(ROOT / "data" / "storybook-sd", folder),
            pictures,
            repeated(pictures, folder / "class_pictures", 40),
            args.diffusers,
            args.python,
        )
        for name in args.only:
            rows = GROUPS[name](place, args.rounds, print)
            for row in rows:
                print(f"{row.work}, beside {row.against}: {row.ratio:.2f} (target {row.target})")
                _compare(row, known)
            known = merged(known, [as_record(row, command) for row in rows])
            RECORD.write_text(json.dumps(known, indent=1) + "\n")
            TABLE.write_text(table(known))


def _compare(row: Row, known: list[dict[str, Any]]) -> None:
    """Say where a ratio is more than a tenth worse than the last recorded one."""
    for one in known:
        if (one["work"], one["against"]) == (row.work, row.against):
            worse = one["ratio"] / row.ratio if row.at_least else row.ratio / one["ratio"]
            if worse > 1.1:
                print(f"  WORSE than on {one['date']}: {one['ratio']:.2f} there ({one['machine']})")


if __name__ == "__main__":
    main()
