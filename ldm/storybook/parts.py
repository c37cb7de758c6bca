"""What every class drawing shares: designs, paints, anchors and eyes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ldm.storybook.pen import RGB, Pen, luminance, mix

INK: RGB = (34, 28, 40)
PAPER: RGB = (250, 248, 240)
CREAM: RGB = (255, 240, 208)
GREY: RGB = (168, 168, 174)


@dataclass(frozen=True)
class Design:
    """How one particular dog, car or house looks, apart from its colours.

    traits: discrete choices by name. sizes: continuous ones by name, in [0, 1].
    Captions never speak of either.
    """

    noun: str
    traits: dict[str, str]
    sizes: dict[str, float]

    def __getitem__(self, trait: str) -> str:
        return self.traits[trait]

    def size(self, name: str, low: float, high: float) -> float:
        """The size `name` mapped from [0, 1] to [low, high]."""
        return low + (high - low) * self.sizes[name]

    def accented(self, part: str) -> bool:
        """Whether the second tone is used on `part`."""
        return part in self.traits["accent"].split("+")


class Paint(NamedTuple):
    """The colours of one object."""

    body: RGB
    second: RGB

    def on(self, design: Design, part: str) -> RGB:
        """The second tone if the design puts it on `part`, else the body colour."""
        return self.second if design.accented(part) else self.body

    @property
    def shade(self) -> RGB:
        """The body colour in shadow; lighter instead for dark bodies."""
        return (
            mix(self.body, PAPER, 0.16) if luminance(self.body) < 60 else mix(self.body, INK, 0.16)
        )


class Anchors(NamedTuple):
    """Where accessories and marks go, in unit coordinates; each (x, y, width)."""

    head: tuple[float, float, float]
    eyes: tuple[float, float, float]
    neck: tuple[float, float, float]
    side: tuple[float, float, float]
    mark: tuple[float, float, float]


def eye(pen: Pen, x: float, y: float, r: float, look: float = 0.25, tall: float = 1.0) -> None:
    """A round white eye with a large dark pupil and a glint."""
    pen.ellipse(x, y, r, r * tall, PAPER)
    pen.ellipse(x + look * r, y, r * 0.62, r * 0.66 * tall, INK, line=False)
    pen.ellipse(x + (look + 0.2) * r, y - 0.25 * r, r * 0.2, r * 0.2, PAPER, line=False)
