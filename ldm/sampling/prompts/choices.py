"""Choices in a prompt: {red|blue}, and __colour__ for a line of a file of that name.

A picture's own seed chooses, so the same picture always has the same text.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.randomness import generator

MOST = 1000  # choices in one prompt: a file that names itself would never end
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}|__([\w/-]+?)__")


@dataclass(frozen=True)
class Wildcards:
    """A folder of text files, NAME.txt for __NAME__: one choice a line; # begins a remark."""

    folder: Path | None = None

    def lines(self, name: str) -> list[str]:
        """The choices of a name. UserError: no folder, no such file, or nothing in it."""
        if self.folder is None:
            raise UserError(f"__{name}__: give the folder of {name}.txt with --wildcards FOLDER")
        path = self.folder / f"{name}.txt"
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"__{name}__: {path} cannot be read ({error}); it holds one choice a line, as UTF-8"
            ) from error
        found = [line.strip() for line in lines if line.strip() and line.lstrip()[0] != "#"]
        if not found:
            raise UserError(f"__{name}__: {path} holds no choice; write one a line")
        return found


def chosen(text: str, seed: int, wildcards: Wildcards) -> str:
    """The prompt with every choice made, innermost and leftmost first; an option may hold more.

    Each choice draws for itself: the n-th of a prompt is the same for a seed, whatever the others
    hold. UserError: a file that cannot be had, or choices without end.
    """
    for place in range(MOST):
        found = _CHOICE.search(text)
        if found is None:
            return text
        options = found[1].split("|") if found[1] is not None else wildcards.lines(found[2])
        draw = generator(seed, "prompt choice", index=place)
        option = options[int(torch.randint(len(options), (), generator=draw))].strip()
        text = text[: found.start()] + option + text[found.end() :]
    raise UserError(f"prompt {text[:200]!r}...: after {MOST} choices there are more to make")
