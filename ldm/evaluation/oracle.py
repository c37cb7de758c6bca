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

    about: "subject" (the prompt holds the identifier), "class" (the bare class) or "unrelated"
    (other things). expected: attribute -> word, only what the prompt names.
    """

    about: str
    prompt: str
    expected: dict[str, str]


class Oracle(Protocol):
    """Named by the dotted path in `evaluation.oracle`; made by calling that without arguments.

    rates: "threshold" of `accepts` and how often it accepts what, measured on pictures whose
    truth is known. attributes: those whose distribution over class pictures is compared.
    """

    rates: dict[str, float]
    attributes: tuple[str, ...]

    def read(self, pictures: Sequence[Image.Image]) -> list[Reading]:
        """What each picture shows."""

    def questions(self, identifier: str, class_noun: str) -> list[Question]:
        """What to ask of a model. Every second subject question makes a half of its own."""

    def accepts(self, embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Whether each row of N x D shows the thing that the M x D references show: bool [N]."""
