"""Numbers for this many pictures on this base and device, each with its reason: an overlay."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ldm.config import Config, differences, flat, load_config
from ldm.config.ranges import value_at
from ldm.models.files.keys import Kind
from ldm.run.memory.prediction import GIB, device_bytes
from ldm.run.preflight.pictures import Look
from ldm.run.prepare import Prepared
from ldm.run.trouble import LORA, ROOT, options_to_fit

MAIN_JOB = ROOT / "configs/dreambooth.yaml"
OVERLAYS: dict[Kind, str] = {
    "sd1": "configs/sd15.yaml",
    "sd2": "configs/sd21.yaml",
    "sdxl": "configs/sdxl.yaml",
}
PHOTOGRAPHS = 256  # pixels a side: a base of fewer is of the embedded one's kind
USUAL = 5  # pictures, at most, that the configurations' steps are for
ROOM = 0.9  # of the device's memory: predictions are up to a tenth too small
GIVEN = ("subject.pictures", "subject.class_noun", "subject.identifier", "model.base")
Numbers = dict[str, tuple[Any, str]]  # dotted key -> value and reason


def recommended(
    config: Config, ready: Prepared, looks: Sequence[Look], needed: int
) -> tuple[Numbers, bool]:
    """What to set, and whether training is predicted to fit the device with it.

    needed: bytes that it takes without.
    """
    count = sum(not look.is_dropped for look in looks)
    numbers = _by_pictures(config, count)
    cut = [look for look in looks if "cut" in look.concerns]
    if cut and config.data.aspect == "square":
        reason = f"a square would cut more than a quarter off {len(cut)} of the pictures"
        numbers["data.aspect"] = ("buckets", reason)
    there = device_bytes(config)
    if there is None or needed <= ROOM * there:
        return numbers, True
    options = options_to_fit(config, ready, int(ROOM * there))
    for option in options or ():
        reason = f"{needed / GIB:.1f} GiB are predicted without, {there / GIB:.1f} are there"
        reason += f"; {option.cost}"
        if option.overlay == LORA:
            numbers |= _lora(reason)
        else:
            numbers |= {key: (value, reason) for key, value in option.changes.items()}
    return numbers, options is not None


def _by_pictures(config: Config, count: int) -> Numbers:
    training, prior = config.training, config.prior
    more = min(2.0, math.sqrt(count / USUAL)) if count > USUAL else 1.0 if count > 2 else 0.5
    steps = (
        max(1, round(more * training.steps / 50) * 50) if training.steps >= 100 else training.steps
    )
    usual = f"{training.steps} are for 3 to 5 pictures"
    if more == 1:
        reason = f"{count} pictures: {usual}"
    elif more < 1:
        reason = f"{usual}; {count} are soon learnt by heart: half as many (not measured)"
    else:
        reason = (
            f"{usual}; {count} take sqrt({count} / 5) times as many (a rule of thumb, not measured)"
        )
    rate = "all weights" if config.adapter is None else config.adapter.kind
    numbers: Numbers = {
        "training.steps": (steps, reason),
        "training.learning_rate": (
            training.learning_rate,
            f"the configuration's for {rate}; does not depend on the number of pictures",
        ),
        "training.batch": (
            training.batch,
            f"each picture is seen about {steps * training.batch / max(count, 1):.0f} times",
        ),
    }
    if prior and prior.images == "cached" and not prior.folder:
        images = max(1, round(prior.count * steps / training.steps))
        uses = steps * prior.batch / (images * len(prior.prompt))
        numbers["prior.count"] = (
            images,
            f"of each class prompt; each is used about {uses:.0f} times",
        )
    return numbers


def _lora(reason: str) -> Numbers:
    """As the head of configs/lora.yaml has it for Stable Diffusion."""
    adapter = load_config([ROOT / LORA], []).adapter
    assert adapter is not None
    values = asdict(adapter) | {"rank": 8, "conv": False}
    numbers: Numbers = {f"adapter.{key}": (value, reason) for key, value in values.items()}
    rate = "diffusers' examples' for a LoRA of Stable Diffusion"
    numbers["training.learning_rate"] = (1e-4, rate)
    numbers["training.text_encoder_learning_rate"] = (None, "the same")
    return numbers


def write_recommended(
    path: Path, config: Config, numbers: Numbers, overlays: Sequence[str]
) -> Config:
    """Write the overlay, and read it as a run would; the configuration that it gives.

    It holds all that differs from configs/dreambooth.yaml, so that it needs nothing else.
    UserError: it cannot be written, or is no valid configuration.
    """
    given = {key: value_at(config, key) for key in GIVEN}
    main_job = load_config([MAIN_JOB], [f"{key}={value}" for key, value in given.items()])
    own = differences(flat(main_job), flat(config))
    source = f"as {', '.join(overlays)}" if overlays else "as given"
    lines: Numbers = {
        key: (now, source) for key, (_, now) in own.items() if not _within_nothing(config, key)
    }
    for name in ("prior", "evaluation"):
        if getattr(config, name) is None:
            lines[name] = (None, source)
    lines = {key: (value, "as given") for key, value in given.items()} | lines | numbers
    text = _yaml(lines, f"python main.py --base configs/dreambooth.yaml {path}")
    path.write_text(text, encoding="utf-8")
    return load_config([MAIN_JOB, path], [])


def _within_nothing(config: Config, key: str) -> bool:
    section = key.partition(".")[0]
    return "." in key and getattr(config, section) is None


def _yaml(lines: Numbers, command: str) -> str:
    """Sections in the order they come in; each value with its reason behind it."""
    text = "# Overlay, written by scripts/preflight.py; every number with its reason.\n"
    text += f"#\n#     {command}\n"
    sections: dict[str, list[str]] = {}
    for key, (value, reason) in lines.items():
        section, dot, name = key.rpartition(".")
        shown = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        shown = shown.removesuffix("\n").removesuffix("\n...")
        if isinstance(value, float):
            shown = f"{value:.10g}" if "e" not in f"{value:.10g}" else f"{value:.4e}"
        indent = "  " if dot else ""
        sections.setdefault(section, []).append(f"{indent}{name}: {shown}  # {reason}")
    for section, values in sections.items():
        head = [f"{section}:"] if section else []
        text += "\n" + "\n".join([*head, *values]) + "\n"
    return text
