"""An oracle that reads nothing but brightness, for runs on a random base."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ldm.evaluation.oracle import Question, Reading


class BrightnessOracle:
    """A picture is "bright" or "dark"; its embedding is its mean colour's direction."""

    attributes = ("light",)

    def __init__(self) -> None:
        self.rates = {"threshold": 0.999}

    def read(self, pictures: Sequence[Image.Image]) -> list[Reading]:
        readings = []
        for picture in pictures:
            colour = np.asarray(picture.convert("RGB"), dtype=np.float64).mean((0, 1)) + 1e-6
            word = "bright" if colour.mean() > 127 else "dark"
            readings.append(Reading({"light": word}, False, colour / np.linalg.norm(colour)))
        return readings

    def questions(self, identifier: str, class_noun: str) -> list[Question]:
        bright, dark = {"light": "bright"}, {"light": "dark"}
        return [
            Question("subject", f"a drawing of {identifier} {class_noun}", bright),
            Question("subject", f"a drawing of {identifier} {class_noun} in the snow", bright),
            Question("class", f"a drawing of a {class_noun}", dark),
            Question("unrelated", "a drawing of a cloud", bright),
        ]

    def accepts(self, embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Pictures whose mean colour points where the references' does."""
        mean = references.mean(axis=0)
        return embeddings @ (mean / np.linalg.norm(mean)) >= self.rates["threshold"]
