"""A command line to a model that stands ready, and what is drawn with it."""

import argparse
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldm.data.prompts import PLACEHOLDER, fill_all, names_subject
from ldm.errors import UserError
from ldm.run.command import DTYPES, choices_of, loras_of
from ldm.run.device import device_of
from ldm.run.drawing.again import threads_on
from ldm.run.drawing.options import SAMPLING, told_options
from ldm.run.placing import Drawing, check_package, place_to_draw
from ldm.run.source import Source, source_of_model, source_of_run

log = logging.getLogger(__name__)


@dataclass
class Ready:
    """A model where it draws; settings: `generate`'s keyword arguments."""

    source: Source
    settings: dict[str, Any]

    def filled(self, templates: list[str]) -> list[str]:
        """Prompts with the identifiers in their places; a warning for one that names nobody."""
        warn_if_nameless(templates, self.source.identifiers)
        return [filled(template, self.source.identifiers) for template in templates]


def make_ready(args: argparse.Namespace, count: int) -> Ready:
    """Load what --run or --model names, and place it for `count` pictures.

    UserError: it cannot be had, the device cannot be used, a package is missing.
    """
    if args.quantize:
        check_package(args.quantize)
    device = device_of(args.device)
    args.dtype = args.dtype or ("fp16" if device.type in ("cuda", "xpu") else "fp32")
    source = _source_of(args, getattr(torch, DTYPES[args.dtype]))
    settings = _settings_of(args, source)
    sides = max(settings["width"], settings["height"])
    drawing = Drawing(sides, min(settings["batch"], count), settings["scale"] != 1)
    way = place_to_draw(source.base, device, drawing, args.memory or "auto", args.quantize)
    told = told_options(args) | {"dtype": args.dtype, "memory": "small" if way.small else "fast"}
    if args.run:
        told["snapshot"] = str(source.provenance["snapshot"])
    source.provenance |= {
        "quantize": way.quantized,
        "device": str(source.base.device),
        "dtype": str(source.base.unet.dtype),
        "threads": threads_on(device),
        "options": told | {"quantize": way.quantized, "device": str(source.base.device)},
    }
    return Ready(source, settings)


def _source_of(args: argparse.Namespace, dtype: torch.dtype) -> Source:
    """What --run or --model names, with --identifier and --out on top."""
    if args.run:
        source = source_of_run(args.run, args.snapshot or "best", bool(args.ema), dtype)
    else:
        choices, loras = choices_of(args, bool(args.ema)), loras_of(args)
        source = source_of_model(args.model, choices, loras, dtype)
    own, others = source.identifiers[:1], source.identifiers[1:]
    identifiers = [args.identifier] if args.identifier else own
    return replace(source, identifiers=[*identifiers, *others], out=args.out or source.out)


def _settings_of(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """The source's settings, with what the command line gives on top."""
    given = {key: getattr(args, key) for key in SAMPLING if getattr(args, key) is not None}
    settings = {**vars(source.defaults), **given}
    settings["negative"] = filled(settings["negative"], source.identifiers)
    if settings["negative"] and settings["scale"] == 1:
        log.warning("the negative prompt does nothing at guidance scale 1")
    settings["width"] = args.width or source.resolution
    settings["height"] = args.height or source.resolution
    return settings


def filled(text: str, identifiers: list[str]) -> str:
    """Put the identifiers where [V], [V2], ... stand. UserError if there is none to put."""
    if identifiers:
        return fill_all(text, identifiers)
    if PLACEHOLDER in text:
        raise UserError(
            f"prompt {text!r}: {PLACEHOLDER} stands for a run's identifier and --model has none; "
            "write the word itself, or give --identifier"
        )
    return text


def warn_if_nameless(prompts: list[str], identifiers: list[str]) -> None:
    """Warn of prompts that name none of the subjects."""
    if not identifiers:
        return
    for prompt in prompts:
        if "[V" not in prompt and not any(names_subject(prompt, name) for name in identifiers):
            log.warning(
                "prompt %r has neither %s nor %s in it, so it does not name the subject",
                *(prompt, PLACEHOLDER, " or ".join(map(repr, identifiers))),
            )
