"""The pictures of a grid: each model is loaded once, and what is there already is not drawn."""

import argparse
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import read_sealed, sha256_of
from ldm.checkpoint.snapshots import MANIFEST, find_snapshot
from ldm.config import flat
from ldm.errors import UserError, explain_disk_errors
from ldm.models.adapters.files import parse_lora
from ldm.run.drawing.ready import Ready, make_ready
from ldm.run.folder import read_config, read_facts
from ldm.run.grid.axes import Axis, Cell
from ldm.run.progress import counted
from ldm.run.source import fingerprint_of
from ldm.sampling.metadata import read_settings, versions
from ldm.sampling.prior import is_whole
from ldm.training.samples import save_picture

log = logging.getLogger(__name__)

CELLS = "cells"  # folder of the pictures
REQUEST = "request"  # key of a picture's settings: what was asked for, hashed
DRAWING = ("scale", "steps", "sampler")  # kinds that are settings of the sampler
NO_MATTER = ("run", "out", "device", "memory", "x", "y", "z", "prompt", "seed", "n")


@dataclass(frozen=True)
class Request:
    """One picture of a cell."""

    cell: Cell
    prompt: str  # as it was written
    seed: int

    @property
    def file(self) -> str:
        return f"{CELLS}/{self.cell.name}-seed{self.seed}.png"


class Drawer:
    """Draws a grid's pictures into a folder.

    args: of the command line; axes: what is compared; seeds: of each cell, unless these are.
    """

    def __init__(
        self, args: argparse.Namespace, axes: list[Axis], prompt: str, seeds: list[int]
    ) -> None:
        self.args, self.axes, self.prompt, self.seeds = args, axes, prompt, seeds

    def requests(self, cell: Cell) -> list[Request]:
        """The pictures of a cell."""
        values, prompt = cell.values, self.prompt
        for axis in self.axes:
            if axis.kind == "prompt":
                prompt = prompt.replace(axis.values[0], values["prompt"])
        seeds = [values["seed"]] if "seed" in values else self.seeds
        return [Request(cell, prompt, seed) for seed in seeds]

    def draw(self, cells: list[Cell], folder: Path) -> None:
        """Draw what is not there. UserError: settings impossible, disk not writable."""
        with explain_disk_errors(folder):
            (folder / CELLS).mkdir(parents=True, exist_ok=True)
        groups = [(w, [*own]) for w, own in itertools.groupby(cells, key=lambda c: c.weights)]
        total, done = sum(len(self.requests(cell)) for cell in cells), 0
        with counted("cells drawn") as report:
            for place, (_, own) in enumerate(groups, 1):
                args = self._args_of(own[0])
                fingerprint, ready = self._fingerprint(args), None
                if fingerprint is None:  # of a model without a manifest
                    ready = make_ready(args, len(self.seeds))
                    fingerprint = ready.source.provenance["fingerprint"]
                asked = [one for cell in own for one in self.requests(cell)]
                digests = {one: self._digest(one, args, fingerprint) for one in asked}
                missing = [one for one in asked if not _is_there(folder / one.file, digests[one])]
                done += len(asked) - len(missing)
                if missing:
                    log.info("model %d of %d: %d pictures", place, len(groups), len(missing))
                    ready = ready or make_ready(args, len(self.seeds))
                    _check_model(ready, fingerprint)
                for _ in self._drawn(ready, missing, folder, digests):
                    done += 1
                    report(done, total)
                if not missing:
                    report(done, total)

    def _drawn(
        self,
        ready: Ready | None,
        missing: list[Request],
        folder: Path,
        digests: dict[Request, str],
    ) -> Iterator[Request]:
        """Draw the pictures of each cell in a batch of their own; each is yielded when saved."""
        for cell, own in itertools.groupby(missing, key=lambda one: one.cell):
            assert ready is not None
            requests = [*own]
            given = {key: cell.values[key] for key in DRAWING if key in cell.values}
            before, ready.settings = ready.settings, {**ready.settings, **given}
            (prompt,) = ready.filled([requests[0].prompt])
            jobs = ready.jobs([prompt], [one.seed for one in requests])
            for one, (picture, told) in zip(requests, ready.draw(jobs), strict=True):
                settings = {**told, "cell": dict(cell.values), REQUEST: digests[one]}
                save_picture(picture, folder / one.file, settings)
                yield one
            ready.settings = before

    def _args_of(self, cell: Cell) -> argparse.Namespace:
        """The command line with the model of a cell."""
        changed: dict[str, Any] = {}
        if "snapshot" in cell.values:
            changed["snapshot"] = cell.values["snapshot"]
        if "adapter" in cell.values:
            weight = cell.values["adapter"]
            if self.args.run:
                changed["adapter_weight"] = weight
            else:
                files = [parse_lora(text)[0] for text in self.args.lora]
                changed["lora"] = [f"{file}:{weight}" for file in files]
        return argparse.Namespace(**{**vars(self.args), **changed})

    def _fingerprint(self, args: argparse.Namespace) -> str | None:
        """Of a run's snapshot, from its manifest; None where the model has to be loaded to know."""
        base = read_facts(args.run).get("base_fingerprint") if args.run else None
        if base is None:
            return None
        manifest = read_sealed(find_snapshot(args.run, args.snapshot or "best") / MANIFEST) or {}
        share = 1.0 if args.adapter_weight is None else args.adapter_weight
        return fingerprint_of(manifest, base, bool(args.ema), share)

    def _digest(self, one: Request, args: argparse.Namespace, fingerprint: str) -> str:
        """Of all that decides a picture."""
        given = {key: _content(value) for key, value in vars(args).items() if key not in NO_MATTER}
        decides = {
            "given": given,
            "values": {key: one.cell.values[key] for key in DRAWING if key in one.cell.values},
            "prompt": [one.prompt, one.seed],
            "fingerprint": fingerprint,
            "run": flat(read_config(args.run)) if args.run else None,
            "versions": versions(),
        }
        text = json.dumps(decides, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def _content(value: Any) -> Any:
    """Of a file its bytes, of a folder those of its text files, hashed; else the value."""
    if not isinstance(value, Path):
        return value
    files = sorted(value.rglob("*.txt")) if value.is_dir() else [value]
    return [sha256_of(file) for file in files if file.is_file()]


def _is_there(path: Path, digest: str) -> bool:
    """Whether a picture is whole, and the one that is asked for."""
    if not is_whole(path):
        return False
    try:
        return read_settings(path).get(REQUEST) == digest
    except UserError:
        return False


def _check_model(ready: Ready, fingerprint: str) -> None:
    if ready.source.provenance["fingerprint"] != fingerprint:
        log.warning("%s has changed since the run", ready.source.provenance.get("base"))
