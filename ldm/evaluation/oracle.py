"""What an oracle is: something that knows a small world and reads pictures of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in one picture.

    words: attribute -> word. none: it is none of the world's pictures (the words are then a guess).
    embedding: unit vector [D]; pictures of one thing lie close together.
    """

    words: dict[str, str]
    none: bool
    embedding: np.ndarray


@dataclass(frozen=True)
class Question:
    """A prompt and the words that must be read off its pictures.

    about: "subject" (the prompt holds the identifier) or "class" (it does not).
    """

    about: str
    prompt: str
    expected: dict[str, str]


class Oracle(Protocol):
    """Named by the dotted path in `evaluation.oracle`; made by calling that without arguments."""

    def read(self, pictures: Sequence[Image.Image]) -> list[Reading]: ...

    def questions(self, identifier: str, class_noun: str) -> list[Question]: ...
