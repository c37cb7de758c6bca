"""Whether a run fits its device: the most memory of training and of drawing, before they begin."""

import itertools
from collections.abc import Sequence
from functools import partial

import psutil
import torch

from ldm.config import Config
from ldm.run.device import kind_of_device, precision_of
from ldm.run.memory.watermark import Need, Pass, Stepping, drawing_bytes, training_need
from ldm.run.prepare import Prepared
from ldm.run.subjects import class_prompts
from ldm.run.trained import set_to_train

GIB = 2**30
# Bytes that an optimizer keeps for each trained parameter; Adafactor's rows and columns are few.
OPTIMIZER_BYTES = {
    "adamw": 8,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "adafactor": 0,
    "prodigy": 16,
    "schedule_free_adamw": 8,
    "lion": 4,
}
# Float32 copies of a parameter that a step of it makes meanwhile, as tests/run/test_memory.py
# counts them. bitsandbytes' 8 bits are only so where it has no kernel of its own: on a CPU.
STEP_COPIES = {"adafactor": 1.25, "prodigy": 1.25, "schedule_free_adamw": 1.0, "lion": 2.0}
STEP_COPIES_ON_CPU = {"adamw_8bit": 5.0, "paged_adamw_8bit": 5.0}
ALL_AT_ONCE = ("schedule_free_adamw",)  # steps in lists of parameters
AS_FLOAT32 = 2.0  # a bfloat16 weight and its gradient are float32 while it is stepped


def optimizer_bytes(optimizer: str) -> int:
    """Bytes per trained parameter that an optimizer keeps; an unknown one is taken for Adam."""
    return OPTIMIZER_BYTES.get(optimizer, 8)


def memory_bytes(config: Config, ready: Prepared) -> int:
    """The most memory of an optimizer step in one process (if there is one process)."""
    return training_memory(config, ready).peak


def memory_lines(config: Config, ready: Prepared, need: Need | None = None) -> list[str]:
    """What is predicted, beside what the device has; what would help where that is less.

    need: of training, where it is known already.
    """
    need = need or training_memory(config, ready)
    batches = {"sampling.batch": config.sampling.batch}
    if config.prior and config.prior.images != "subject" and not config.prior.folder:
        batches["prior.sampling_batch"] = config.prior.sampling_batch
    key = max(batches, key=lambda name: batches[name])
    guided = config.sampling.scale != 1
    drawing = need.held + drawing_bytes(ready.base, ready.resolution, batches[key], guided)
    there = device_bytes(config)
    of = f", of {there / GIB:.1f} in this machine" if there else ""
    lines = [
        f"about {need.peak / GIB:.1f} GiB per process while training, {drawing / GIB:.1f} while "
        f"pictures are drawn ({key}={batches[key]}){of}"
    ]
    if there and need.peak > there:
        lines.append("NOT ENOUGH to train; configs/low_memory.yaml and docs/memory.md say how")
    if there and drawing > there:
        lines.append(f"NOT ENOUGH to draw so many at once: lower {key}")
    return lines


def device_bytes(config: Config) -> int | None:
    """All memory of the device that a run will use; None where that cannot be told."""
    if config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    if config.trainer.accelerator not in ("auto", "cpu"):
        return None
    return psutil.virtual_memory().total


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None


def pass_of(config: Config, ready: Prepared) -> Pass:
    """One forward and backward pass of the run's training."""
    prior, training = config.prior, config.training
    pictures = [first for subject in ready.subjects for first, *_ in subject.prompts]
    prompts = _dealt(pictures, training.batch // training.accumulate)
    taught = 0
    if prior:
        count = prior.batch // training.accumulate
        prompts += _dealt(class_prompts(ready.subjects), count)
        taught = count if prior.target == "base" else 0
    return Pass(prompts, taught, ready.resolution, precision_of(config))


def training_memory(config: Config, ready: Prepared) -> Need:
    """What training takes in one process."""
    training = config.training
    averages = 4 if config.ema.schedule != "none" else 0
    paged = training.optimizer.startswith("paged")  # what it keeps need not be on the device
    return training_need(
        ready.base,
        ready.adapters,
        partial(set_to_train, config),
        pass_of(config, ready),
        passes=min(2, training.accumulate),  # from the second on, gradients are there already
        kept=(0 if paged else optimizer_bytes(training.optimizer)) + averages,
        teacher=ready.frozen,
        stepping=_stepping(config),
    )


def _stepping(config: Config) -> Stepping:
    training = config.training
    copies = STEP_COPIES.get(training.optimizer, 0.0)
    at_once = training.optimizer in ALL_AT_ONCE
    if kind_of_device(config) == "cpu":
        copies += STEP_COPIES_ON_CPU.get(training.optimizer, 0.0)
    elif training.optimizer == "adamw" and precision_of(config) == "16-mixed":
        copies, at_once = 1.0, True  # not fused with a gradient scaler: torch takes lists then
    low = training.weights == "bf16"
    return Stepping(
        copies + (AS_FLOAT32 if low else 0.0),
        all_at_once=at_once,
        alone=low or training.fused_backward,
        in_backward=training.fused_backward,
    )


def _dealt(prompts: Sequence[str], count: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(prompts), count))
