"""What a grid compares: axes, and the cells that they make."""

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import UserError
from ldm.run.drawing.jobs import seeds_of
from ldm.sampling.samplers import check_sampler

NAMES = ("x", "y", "z")
# Of each axis: how a value is read. Those of MODEL need other weights.
KINDS: dict[str, Callable[[str], Any]] = {
    "snapshot": str,
    "adapter": float,
    "scale": float,
    "steps": int,
    "sampler": str,
    "seed": int,
    "prompt": str,
}
MODEL = ("snapshot", "adapter")


@dataclass(frozen=True)
class Axis:
    """kind: one of KINDS; of a prompt's the first value is what the others take the place of."""

    kind: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        alone = self.kind in ("prompt", "sampler")
        return [f"{value}" if alone else f"{self.kind} {value}" for value in self.values]


@dataclass(frozen=True)
class Cell:
    """place: on the x, y and z axis; values: of each kind that is compared."""

    place: tuple[int, int, int]
    values: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        return "-".join(f"{name}{at}" for name, at in zip(NAMES, self.place, strict=True))

    @property
    def weights(self) -> tuple[Any, ...]:
        """What decides which weights draw."""
        return tuple(self.values.get(kind) for kind in MODEL)


def parse_axis(option: str, text: str) -> Axis:
    """ "scale=1,5" -> its axis; seeds as ranges. UserError: another kind, or a value of another."""
    kind, equals, listed = text.partition("=")
    if kind not in KINDS or not equals:
        raise UserError(f"{option} {text}: must be KIND=VALUES, a KIND of {', '.join(KINDS)}")
    (parts,) = csv.reader([listed], skipinitialspace=True)
    try:
        if kind == "seed":
            values = seeds_of(listed, None if "-" in listed or "," in listed else 1)
        else:
            values = [KINDS[kind](part.strip()) for part in parts]
    except ValueError as error:
        raise UserError(f"{option} {text}: {error}") from error
    if not values or "" in values:
        raise UserError(f"{option} {text}: a value is missing")
    if len(set(values)) < len(values):
        raise UserError(f"{option} {text}: a value stands there twice")
    for value in values if kind == "sampler" else ():
        check_sampler(str(value), option)
    return Axis(kind, tuple(values))


def check_axes(axes: Sequence[Axis], prompt: str) -> None:
    """UserError: one kind on two axes, or a word to be replaced that the prompt has not."""
    kinds = [axis.kind for axis in axes]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"two axes are of one kind ({', '.join(kinds)}); give each its own")
    for axis in axes:
        if axis.kind == "prompt" and axis.values[0] not in prompt:
            raise UserError(
                f"prompt={axis.values[0]},...: the prompt {prompt!r} does not hold "
                f"{axis.values[0]!r}, which the other values are to replace"
            )


def cells_of(axes: Sequence[Axis]) -> list[Cell]:
    """Every cell, those of a model one after the other, so that each is loaded once."""
    ranges = [range(len(axis.values)) for axis in axes]
    cells = []
    for own in itertools.product(*ranges):
        values = {axis.kind: axis.values[at] for axis, at in zip(axes, own, strict=True)}
        x, y, z = (*own, *[0] * (len(NAMES) - len(own)))
        cells.append(Cell((x, y, z), values))
    first = list(dict.fromkeys(cell.weights for cell in cells))
    return sorted(cells, key=lambda cell: (first.index(cell.weights), cell.place[::-1]))
