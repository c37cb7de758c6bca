"""Stands in for main.py: makes a run folder with an evaluation.json in no time.

What it does beside that is told by the configuration's `seed`: see below.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from ldm.config import Config, flat, load_config, split_command_line, to_yaml

FAILS, FAILS_ONCE, WAITS, DIES, UNMEASURED = 13, 14, 15, 16, 17
GATES = [{"name": "drift", "passed": False, "value": 0.5, "limit": 0.1, "advice": "fewer steps"}]


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 24}


def evaluation(config: Config) -> dict:
    """The more steps, the more faithful; from 900 on the gates refuse. Noise-free."""
    steps, rate = config.training.steps, config.training.learning_rate
    fidelity = 0.5 + steps / 2000 + rate
    base = {"subject/fidelity/oracle": score(0.1), "class/identity": score(0.0)}
    trained = {"subject/fidelity/oracle": score(fidelity), "class/identity": score(0.02)}
    choosing = {**trained, "subject/fidelity/oracle": score(fidelity + 0.01)}
    refused = steps >= 900
    gates = [{**GATES[0], "passed": not refused, "value": 0.1 + steps / 1000 * refused}]
    return {
        "base": base,
        "snapshots": {str(steps): trained},
        "choosing": {"base": base, "snapshots": {str(steps): choosing}, "prompts": []},
        "chosen": None if refused else steps,
        "reasons": ["drift: too many steps"] if refused else ["the only one"],
        "verdict": "It is so. It is that.",
        "gates": {str(steps): gates},
        "ceiling": {"subject/fidelity/oracle": score(0.9)},
        "floor": {},
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", nargs="+", default=[])
    parser.add_argument("--name")
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    print(
        "threads", os.environ.get("OMP_NUM_THREADS"), "gpus", os.environ.get("CUDA_VISIBLE_DEVICES")
    )
    if args.resume:
        run, config = args.resume, load_config([args.resume / "config.yaml"], [])
        print("resumed")
    else:
        config = load_config(*split_command_line([*args.base, f"name={args.name}"]))
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
        run = Path(config.logs) / f"{stamp}_{args.name}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(config))
        facts = {"config": flat(config), "class_noun": config.subject.class_noun}
        (run / "run.json").write_text(json.dumps(facts))
    print("process", os.getpid())
    print("at work", flush=True)
    if config.seed == FAILS or (config.seed == FAILS_ONCE and not args.resume):
        print("something is wrong")
        return 1
    if config.seed == WAITS and not args.resume:
        signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(0)))
        time.sleep(60)
    if config.seed == DIES and not args.resume:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed != UNMEASURED:
        (run / "evaluation.json").write_text(json.dumps(evaluation(config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
