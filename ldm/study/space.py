"""What a sweep searches: `key=1e-6..1e-4,log`, `key=100..600,100`, `key=data|base`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})((?:,[^,]*)*)")
FORM = "key=LOW..HIGH, key=LOW..HIGH,log, key=LOW..HIGH,STEP or key=one|other"


@dataclass(frozen=True)
class Range:
    """low to high, both included; whole numbers where both are (and the step, if any)."""

    low: float | int
    high: float | int
    log: bool = False
    step: float | int | None = None

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return IntDistribution(self.low, self.high, log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> tuple[Any, Any]:
        return self.low, self.high

    def holds(self, value: float) -> bool:
        steps = (value - self.low) / self.step if self.step else 0.0
        return self.low <= value <= self.high and abs(steps - round(steps)) < 1e-6


@dataclass(frozen=True)
class Choice:
    """One of several words, as they would stand after `key=`."""

    words: tuple[str, ...]

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.words)

    def ends(self) -> tuple[str, ...]:
        return self.words


Space = dict[str, Range | Choice]


def read_space(words: Sequence[str]) -> tuple[Space, list[str]]:
    """Part `key=value` words into what is searched and what is fixed (a plain key=value).

    UserError: a range that is empty or of an unknown form, a key searched twice, nothing searched.
    """
    space: Space = {}
    fixed = []
    for word in words:
        key, _, text = word.partition("=")
        found = RANGE.fullmatch(text.strip())
        if not found and "|" not in text:
            fixed.append(word)
            continue
        if key in space:
            raise UserError(f"{word}: {key} is searched already; give one range for it")
        space[key] = _range(word, *found.groups()) if found else _choice(word, text)
    if not space:
        raise UserError(f"nothing to search for; give {FORM}")
    return space, fixed


def _range(word: str, low_text: str, high_text: str, more: str) -> Range:
    parts = more.split(",")[1:]
    steps = [part for part in parts if part != "log"]
    log = "log" in parts
    wrong = len(parts) > 1 or not all(re.fullmatch(NUMBER, part) for part in steps)
    numbers = [low_text, high_text, *steps]
    if wrong:
        raise UserError(f"{word}: must be {FORM}")
    whole = all(re.fullmatch(r"[+-]?\d+", number) for number in numbers)
    low, high, *step = [int(n) if whole else float(n) for n in numbers]
    if low >= high:
        raise UserError(f"{word}: the range is empty; give the lower number first")
    if log and low <= 0:
        raise UserError(f"{word}: a range with log must begin above 0")
    if step and (step[0] <= 0 or step[0] > high - low):
        raise UserError(f"{word}: the step must be above 0 and fit into the range")
    return Range(low, high, log, step[0] if step else None)


def _choice(word: str, text: str) -> Choice:
    words = tuple(part.strip() for part in text.split("|"))
    if len(set(words)) < len(words) or not all(words):
        raise UserError(f"{word}: must be {FORM}, with words that differ")
    return Choice(words)


def corners(space: Space) -> list[list[str]]:
    """Command lines that between them hold every end and every choice: to see if all can be."""
    most = max(len(part.ends()) for part in space.values())
    return [
        overrides({key: part.ends()[min(i, len(part.ends()) - 1)] for key, part in space.items()})
        for i in range(most)
    ]


def overrides(parameters: Mapping[str, Any]) -> list[str]:
    """key=value words; numbers so that they are read as the same numbers."""
    return [f"{key}={value}" for key, value in parameters.items()]


def within(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a configuration has now, of the keys where they lie in the space."""
    found = {}
    for key, part in space.items():
        value = config.get(key)
        if isinstance(part, Choice):
            word = {None: "null", True: "true", False: "false"}.get(value, str(value))
            inside = word in part.words
            value = word
        else:
            inside = isinstance(value, int | float) and part.holds(value)
        if inside:
            found[key] = value
    return found
