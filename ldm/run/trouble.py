"""A device that is too small: what was tried, and what would help most."""

import copy
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ldm.config import Config, load_config
from ldm.config.checks import combination_problems
from ldm.config.ranges import range_problems, value_at
from ldm.models.quantised import quantise
from ldm.run.adapters import adapters_of
from ldm.run.device import precision_of
from ldm.run.memory import prediction
from ldm.run.memory.prediction import GIB
from ldm.run.memory.watermark import copy_of
from ldm.run.prepare import Prepared, frozen_of
from ldm.run.resume import MAY_CHANGE
from ldm.run.trained import base_dtype, frozen_bits
from ldm.training.optim import PACKAGES

SHOWN = 3
ROOT, LORA = Path(__file__).parents[2], "configs/lora.yaml"


@dataclass
class Option:
    """Something on the command line that needs less memory."""

    changes: dict[str, Any]  # dotted key -> value
    cost: str
    overlay: str = ""  # that makes these changes, where it is a file
    saved: float = 0.0  # GiB, predicted

    def __str__(self) -> str:
        shown = {
            key: str(value).lower() if isinstance(value, bool) else value
            for key, value in self.changes.items()
        }
        return self.overlay or " ".join(f"{key}={value}" for key, value in shown.items())

    @property
    def may_change_on_resume(self) -> bool:
        return all(key.startswith(tuple(MAY_CHANGE)) for key in self.changes)


def out_of_memory_message(config: Config, ready: Prepared, error: BaseException) -> str:
    """What was tried and which options would help most, in order, with their predicted effect."""
    what = " ".join(". ".join(str(error).split(". ")[:2]).split())
    if (sampling := _sampling_option(config, error)) is not None:
        key, batch = sampling
        return (
            f"out of memory while pictures were drawn ({what}): {key}={batch} at once; "
            f"give {key}={batch // 2}, which gives the same pictures but for rounding"
        )
    config, ready = _with(config, ready)
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
        left = prediction.memory_bytes(*_with(config, ready, *options)) / GIB
        lines.append(f"  with all of them: {left:.2f} GiB")
    others = [str(option) for option in options if not option.may_change_on_resume]
    if others:
        lines.append(f"  --resume does not take {', '.join(others)}: start a new run for that")
    return "\n".join(lines)


def best_options(config: Config, ready: Prepared) -> list[Option]:
    """Up to three options that go together, by predicted saving, the less harmful first among
    equals.

    A smaller picture changes what is learnt most: it comes after all others.
    """
    before, found = prediction.memory_bytes(config, ready), []
    for option in _options(config, ready):
        changed = _changed(config, option)
        if [*range_problems(changed), *combination_problems(changed)]:
            continue
        after = prediction.memory_bytes(*_with(config, ready, option))
        option.saved = round((before - after) / GIB, 2)
        if after < before:
            found.append(option)
    found.sort(key=lambda option: ("data.resolution" in option.changes, -option.saved))
    together: list[Option] = []
    for option in found:
        both = _changed(config, *together, option)
        if len(together) < SHOWN and not any(combination_problems(both)):
            together.append(option)
    return together


def options_to_fit(config: Config, ready: Prepared, room: int) -> list[Option] | None:
    """The least harmful options, in order, with which training that takes more is predicted to
    take at most `room` bytes; None where all of them are too few."""
    needed, together = prediction.memory_bytes(config, ready), list[Option]()
    for option in _options(config, ready):
        if needed <= room:
            break
        changed = _changed(config, *together, option)
        if "data.resolution" in option.changes or [
            *range_problems(changed),
            *combination_problems(changed),
        ]:
            continue
        now = prediction.memory_bytes(*_with(config, ready, *together, option))
        if now < needed:
            together, needed = [*together, option], now
    return together if needed <= room else None


def _options(config: Config, ready: Prepared) -> Iterator[Option]:
    """What is not set yet, the least harmful first."""
    training, model, adapter = config.training, config.model, config.adapter
    half = {"training.precision": "bf16-mixed"} if precision_of(config) == "fp32" else {}
    if (passes := _most_passes(config)) > training.accumulate:
        cost = "the same result but for rounding, some time"
        yield Option({"training.accumulate": passes}, cost)
    if not model.gradient_checkpointing:
        cost = "the same result but for rounding, a step takes about a third longer"
        yield Option({"model.gradient_checkpointing": True}, cost)
    if not training.fused_backward:
        yield Option({"training.fused_backward": True}, "the same result")
    if training.weights == "fp32" and not half:
        yield Option({"training.weights": "bf16"}, "less exact: weights are rounded by chance")
    if half:
        yield Option(half, "less exact, faster on most GPUs")
    if adapter and adapter.frozen == "full":
        cost = "the base's own weights are rounded once"
        yield Option({**half, "adapter.frozen": "half"}, cost)
    if adapter and adapter.frozen == "half":
        yield Option({"adapter.frozen": "int8"}, "the base's own weights are rounded to 8 bits")
    if training.optimizer != "adamw_8bit" and not training.optimizer_arguments:
        package = PACKAGES["adamw_8bit"]
        needs = "" if importlib.util.find_spec(package) else f" (pip install {package})"
        yield Option({"training.optimizer": "adamw_8bit"}, f"Adam's moments in 8 bits{needs}")
    if not adapter:
        cost = "a LoRA is trained in place of all weights, at rates of its own (docs/adapters.md)"
        yield Option({"adapter": load_config([ROOT / LORA], []).adapter}, cost, LORA)
    if model.train_text_encoder:
        cost = "the text encoder stays as it is: less of a likeness"
        yield Option({"model.train_text_encoder": False}, cost)
    smaller = int(0.75 * ready.resolution) // ready.base.multiple * ready.base.multiple
    if smaller > 0:
        yield Option({"data.resolution": smaller}, "less detail; the last resort")


def _changed(config: Config, *options: Option) -> Config:
    changed = copy.deepcopy(config)
    for key, value in (change for option in options for change in option.changes.items()):
        section, _, name = key.rpartition(".")
        setattr(value_at(changed, section) if section else changed, name, value)
    return changed


def _with(config: Config, ready: Prepared, *options: Option) -> tuple[Config, Prepared]:
    """The configuration with these options; what `prepare` would make of it, without content."""
    config = _changed(config, *options)
    base, adapters = copy_of(ready.base, ready.adapters, "meta")
    for adapter in adapters.values():
        adapter.take_out()
        vars(adapter.network).pop("peft_config", None)  # peft warns of a second adapter
    base.to("meta", None if base.bits else base_dtype(config))
    if (bits := frozen_bits(config)) and not base.bits:
        quantise(base, bits)
    frozen = frozen_of(config, base)
    resolution = config.data.resolution or ready.resolution
    own = adapters_of(config, base)
    changed = replace(ready, base=base, frozen=frozen, adapters=own, resolution=resolution)
    return config, changed


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
    if config.adapter:
        trained = f"{config.adapter.kind} of rank {config.adapter.rank} in {trained}"
    checkpointing = ", gradient checkpointing" if config.model.gradient_checkpointing else ""
    return (
        f"{ready.resolution} pixels, {samples} per forward pass, {precision_of(config)}, "
        f"{trained} trained with {training.optimizer}{checkpointing}"
    )


def _predicted(config: Config, ready: Prepared) -> str:
    needed = f"{prediction.memory_bytes(config, ready) / GIB:.2f} GiB"
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
