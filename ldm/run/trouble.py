"""A device that is too small: what was tried, and what would help most."""

import copy
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType

import torch

from ldm.config import Config
from ldm.config.checks import combination_problems
from ldm.config.ranges import range_problems, value_at
from ldm.run import memory
from ldm.run.device import precision_of
from ldm.run.memory import GIB
from ldm.run.prepare import Prepared
from ldm.run.resume import MAY_CHANGE
from ldm.training.optim import PACKAGES

SHOWN = 3


@dataclass
class Option:
    """One key=value that needs less memory."""

    key: str
    value: str  # as on the command line
    cost: str
    config: Config
    ready: Prepared
    saved: float = 0.0  # GiB, predicted

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def out_of_memory_message(config: Config, ready: Prepared, error: BaseException) -> str:
    """What was tried and which options would help most, in order, with their predicted effect."""
    what = " ".join(". ".join(str(error).split(". ")[:2]).split())
    if (sampling := _sampling_option(config, error)) is not None:
        key, batch = sampling
        return (
            f"out of memory while pictures were drawn ({what}): {key}={batch} at once; "
            f"give {key}={batch // 2}, which gives the same pictures but for rounding"
        )
    lines = [
        f"out of memory while training ({what})",
        f"  tried: {_tried(config, ready)}",
        f"  predicted: {_predicted(config, ready)}",
    ]
    options = best_options(config, ready)
    if not options:
        return "\n".join([*lines, "  nothing is left to try here; use a smaller base (model.base)"])
    lines.append("  add to the command line what helps most, by prediction:")
    for number, option in enumerate(options, start=1):
        lines.append(f"  {number}. {option}: {option.saved:.2f} GiB less; {option.cost}")
    if len(options) > 1:
        left = memory.memory_bytes(*_all_of(config, ready, options)) / GIB
        lines.append(f"  with all of them: {left:.2f} GiB")
    others = [str(option) for option in options if not option.key.startswith(tuple(MAY_CHANGE))]
    if others:
        lines.append(f"  --resume does not take {', '.join(others)}: start a new run for that")
    return "\n".join(lines)


def best_options(config: Config, ready: Prepared) -> list[Option]:
    """Up to three options by predicted saving, the less harmful first among equals.

    A smaller picture changes what is learnt most: it comes after all others.
    """
    before, found = memory.memory_bytes(config, ready), []
    for option in _options(config, ready):
        after = memory.memory_bytes(option.config, option.ready)
        option.saved = round((before - after) / GIB, 2)
        problems = [*range_problems(option.config), *combination_problems(option.config)]
        if after < before and not problems:
            found.append(option)
    found.sort(key=lambda option: (option.key == "data.resolution", -option.saved))
    return found[:SHOWN]


def _options(config: Config, ready: Prepared) -> Iterator[Option]:
    """What is not set yet, the least harmful first."""
    training, model = config.training, config.model

    def option(key: str, value: object, cost: str, resolution: int = ready.resolution) -> Option:
        changed = replace(ready, resolution=resolution)
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        return Option(key, shown, cost, _with(config, key, value), changed)

    if (passes := _most_passes(config)) > training.accumulate:
        cost = "the same result but for rounding, some time"
        yield option("training.accumulate", passes, cost)
    if not model.gradient_checkpointing:
        cost = "the same result but for rounding, a step takes about a third longer"
        yield option("model.gradient_checkpointing", True, cost)
    if precision_of(config) == "fp32":
        yield option("training.precision", "bf16-mixed", "less exact, faster on most GPUs")
    if training.optimizer != "adamw_8bit" and not training.optimizer_arguments:
        package = PACKAGES["adamw_8bit"]
        needs = "" if importlib.util.find_spec(package) else f" (pip install {package})"
        yield option("training.optimizer", "adamw_8bit", f"Adam's moments in 8 bits{needs}")
    if model.train_text_encoder:
        cost = "the text encoder stays as it is: less of a likeness"
        yield option("model.train_text_encoder", False, cost)
    smaller = int(0.75 * ready.resolution) // ready.base.multiple * ready.base.multiple
    if smaller > 0:
        yield option("data.resolution", smaller, "less detail; the last resort", smaller)


def _with(config: Config, key: str, value: object) -> Config:
    changed = copy.deepcopy(config)
    section, _, name = key.rpartition(".")
    setattr(value_at(changed, section), name, value)
    return changed


def _all_of(config: Config, ready: Prepared, options: list[Option]) -> tuple[Config, Prepared]:
    for option in options:
        config = _with(config, option.key, value_at(option.config, option.key))
        if option.key == "data.resolution":
            ready = option.ready
    return config, ready


def _most_passes(config: Config) -> int:
    """The most forward passes that a step can be split into, with as many samples in each."""
    batches = [config.training.batch] + ([config.prior.batch] if config.prior else [])
    return math.gcd(*batches) // _processes()


def _processes() -> int:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1


def _tried(config: Config, ready: Prepared) -> str:
    training, passes = config.training, config.training.accumulate * _processes()
    samples = f"{training.batch // passes} pictures"
    if config.prior:
        samples += f" + {config.prior.batch // passes} class images"
    trained = "UNet and text encoder" if config.model.train_text_encoder else "UNet"
    checkpointing = ", gradient checkpointing" if config.model.gradient_checkpointing else ""
    return (
        f"{ready.resolution} pixels, {samples} per forward pass, {precision_of(config)}, "
        f"{trained} trained with {training.optimizer}{checkpointing}"
    )


def _predicted(config: Config, ready: Prepared) -> str:
    needed = f"{memory.memory_bytes(config, ready) / GIB:.2f} GiB"
    if not torch.cuda.is_available():
        return needed
    return f"{needed} (an estimate) of the device's {torch.cuda.mem_get_info()[1] / GIB:.2f}"


def _sampling_option(config: Config, error: BaseException) -> tuple[str, int] | None:
    """Key and value of how many pictures were drawn at once, if that is where memory ran out."""
    rooms = set(_modules(error.__traceback__))
    if config.prior and rooms & {"ldm.sampling.prior", "ldm.sampling.live"}:
        key, batch = "prior.sampling_batch", config.prior.sampling_batch
    elif "ldm.sampling.generate" in rooms:
        key, batch = "sampling.batch", config.sampling.batch
    else:
        return None
    return (key, batch) if batch > 1 else None


def _modules(traceback: TracebackType | None) -> Iterator[str]:
    """Names of the modules that an error came through."""
    while traceback is not None:
        yield traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
