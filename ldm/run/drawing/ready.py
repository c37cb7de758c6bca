"""A command line to a model that stands ready, and what is drawn with it."""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from ldm.data.prompts import PLACEHOLDER, fill_all, names_subject
from ldm.errors import UserError
from ldm.run.command import DTYPES, choices_of, loras_of
from ldm.run.device import device_of
from ldm.run.drawing.again import threads_on
from ldm.run.drawing.begin import Begin, begin_of, size_of_start
from ldm.run.drawing.jobs import Job
from ldm.run.drawing.options import SAMPLING, told_options
from ldm.run.drawing.pictures import draw
from ldm.run.memory.placing import Drawing, check_package, place_to_draw
from ldm.run.source import Source, source_of_model, source_of_run
from ldm.sampling.prompts.choices import Wildcards, chosen
from ldm.sampling.prompts.styles import Style, read_styles, style_of, with_style

log = logging.getLogger(__name__)


@dataclass
class Ready:
    """A model where it draws; settings: `generate`'s keyword arguments.

    begin: what of these is no plain value. styles: put around prompts. plain: prompts are nothing
    but text.
    """

    source: Source
    settings: dict[str, Any]
    begin: Begin
    styles: list[Style]
    wildcards: Wildcards
    plain: bool

    def draw(self, jobs: list[Job]) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        """Each picture, in order, and its settings. UserError, at once: settings impossible."""
        begin = {"start": self.begin.start, "hires": self.begin.hires}
        source = self.source
        return draw(source.base, jobs, self.settings, source.provenance, self.plain, begin)

    def filled(self, templates: list[str]) -> list[str]:
        """Prompts with styles and identifiers, the choices not yet made.

        A warning for one that names nobody. UserError: nobody is there to be named.
        """
        styled = [_styled(text, [style.prompt for style in self.styles]) for text in templates]
        warn_if_nameless(styled, self.source.identifiers)
        return [filled(text, self.source.identifiers) for text in styled]

    def jobs(self, prompts: list[str], seeds: list[int]) -> list[Job]:
        """Every prompt with every seed, which makes its choices."""
        if self.plain:
            return [Job(prompt, seed) for prompt in prompts for seed in seeds]
        return [Job(chosen(prompt, s, self.wildcards), s) for prompt in prompts for s in seeds]


def make_ready(args: argparse.Namespace, count: int) -> Ready:
    """Load what --run or --model names, and place it for `count` pictures.

    UserError: it cannot be had, the device cannot be used, a package is missing.
    """
    if args.quantize:
        check_package(args.quantize)
    device = device_of(args.device)
    args.dtype = args.dtype or ("fp16" if device.type in ("cuda", "xpu") else "fp32")
    known = read_styles(args.styles) if args.styles else {}
    styles = [style_of(known, name) for name in args.style]
    source = _source_of(args, getattr(torch, DTYPES[args.dtype]))
    settings = _settings_of(args, source, [style.negative for style in styles])
    size = settings["width"], settings["height"]
    begin = begin_of(args, size)
    end = begin.hires.size(source.base, *size) if begin.hires else size
    drawing = Drawing(max(end), min(settings["batch"], count), settings["scale"] != 1)
    way = place_to_draw(source.base, device, drawing, args.memory or "auto", args.quantize)
    told = told_options(args) | {"dtype": args.dtype, "memory": "small" if way.small else "fast"}
    if args.run:
        told["snapshot"] = str(source.provenance["snapshot"])
    source.provenance |= {
        "quantize": way.quantized,
        "device": str(source.base.device),
        "dtype": str(source.base.unet.dtype),
        "threads": threads_on(device),
        **begin.told,
        "options": told | {"quantize": way.quantized, "device": str(source.base.device)},
    }
    return Ready(source, settings, begin, styles, Wildcards(args.wildcards), bool(args.plain))


def _source_of(args: argparse.Namespace, dtype: torch.dtype) -> Source:
    """What --run or --model names, with --identifier and --out on top."""
    if args.run:
        share = 1.0 if args.adapter_weight is None else args.adapter_weight
        source = source_of_run(args.run, args.snapshot or "best", bool(args.ema), dtype, share)
    else:
        choices, loras = choices_of(args, bool(args.ema)), loras_of(args)
        source = source_of_model(args.model, choices, loras, dtype)
    own, others = source.identifiers[:1], source.identifiers[1:]
    identifiers = [args.identifier] if args.identifier else own
    return replace(source, identifiers=[*identifiers, *others], out=args.out or source.out)


def _settings_of(args: argparse.Namespace, source: Source, negatives: list[str]) -> dict[str, Any]:
    """The source's settings, with what the command line gives on top."""
    given = {key: getattr(args, key) for key in SAMPLING if getattr(args, key) is not None}
    settings = {**vars(source.defaults), **given}
    settings["negative"] = filled(_styled(settings["negative"], negatives), source.identifiers)
    if settings["negative"] and settings["scale"] == 1:
        log.warning("the negative prompt does nothing at guidance scale 1")
    width = height = source.resolution
    if args.init_image and not (args.width or args.height):
        width, height = size_of_start(args.init_image, source.resolution, source.base)
    settings |= {"width": args.width or width, "height": args.height or height}
    return settings


def _styled(text: str, styles: list[str]) -> str:
    """A prompt with the text of each style around it, the first one innermost."""
    for style in styles:
        text = with_style(text, style)
    return text


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
