"""The oracle: reads class, colour, setting and accessory off a picture, and tells designs apart.

A small convolutional network trained on rendered pictures (`pretraining.oracle`), shipped in
`data/storybook-oracle`. It measures what a model of the storybook world drew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ldm.errors import UserError
from ldm.evaluation.oracle import Question, Reading
from ldm.storybook.captions import compose
from ldm.storybook.world import ACCESSORIES, COLOURS, NOUNS, SETTINGS

FOLDER = Path("data/storybook-oracle")
OTHER = "other"  # a colour outside the world's palette
VOCABULARY: dict[str, tuple[str, ...]] = {
    "class": NOUNS,
    "colour": (*COLOURS, OTHER),
    "setting": SETTINGS,
    "accessory": ACCESSORIES,
}
WIDE = ("mix.weight", "describe.weight")  # two thirds of the weights: eight bits each in the file
ASKED_SETTINGS = (
    "in the snow",
    "under water",
    "on the moon",
    "in the city",
    "in the kitchen",
    "at night",
)  # of a subject


class _Block(nn.Module):
    """A pre-activation residual block that halves the picture."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        y = self.conv2(functional.relu(self.norm2(y)))
        return y + self.skip(functional.avg_pool2d(x, 2))


class StorybookOracle(nn.Module):
    """Pictures [N, 3, 64, 64] in [-1, 1] -> logits for each attribute, "none" and an embedding.

    rates: the threshold of `accepts` and how often it accepts what; empty before it is measured.
    """

    rates: dict[str, float]
    attributes = ("colour", "setting", "accessory")

    def __init__(
        self, channels: Sequence[int] = (32, 64, 96, 128), features: int = 256, embedding: int = 64
    ):
        super().__init__()
        self.rates = {}
        self.channels, self.features = list(channels), features
        self.stem = nn.Conv2d(3, channels[0], 5, stride=2, padding=2)  # 64 -> 32 pixels
        self.blocks = nn.Sequential(
            *(_Block(a, b) for a, b in zip(channels, channels[1:], strict=False))
        )  # 32 -> 4 pixels
        self.norm = nn.BatchNorm2d(channels[-1])
        flat = channels[-1] * 16  # where things are matters: no pooling
        self.mix = nn.Linear(flat, features)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(features, len(words)) for name, words in VOCABULARY.items()}
        )
        self.none = nn.Linear(features, 1)
        self.describe = nn.Linear(flat, features)
        self.embed = nn.Linear(features, embedding)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        return self.answer(self.look(pictures))

    def look(self, pictures: Tensor) -> Tensor:
        """What everything is read off: N x (128 x 4 x 4)."""
        x = self.blocks(self.stem(pictures))
        return functional.relu(self.norm(x)).flatten(1)

    def answer(self, seen: Tensor) -> dict[str, Tensor]:
        """Logits for each attribute and for "none", the unit embedding, from what `look` sees."""
        features = functional.relu(self.mix(seen))
        logits = {name: head(features) for name, head in self.heads.items()}
        logits["none"] = self.none(features)[:, 0]
        return {**logits, "embedding": self.recognise(seen)}

    def recognise(self, seen: Tensor) -> Tensor:
        """The unit embedding alone: N x D."""
        return functional.normalize(self.embed(self.described(seen)).float(), dim=1)

    def described(self, seen: Tensor) -> Tensor:
        """Which thing of its class it is, for `recognise`: N x features."""
        return functional.relu(self.describe(seen))

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """The shipped oracle, in eval mode. UserError where the folder lacks it."""
        weights, about = folder / "oracle.safetensors", folder / "oracle.json"
        if not weights.is_file() or not about.is_file():
            raise UserError(
                f"{folder}: no oracle.safetensors with oracle.json; make it with "
                "`python scripts/pretrain.py --stage oracle`, or set `evaluation.oracle=null`"
            )
        shape = json.loads(about.read_text())
        oracle = cls(shape["channels"], shape["features"], shape["embedding"])
        oracle.rates = shape["rates"]
        oracle.load_state_dict(unpacked(load_file(weights)))
        return oracle.eval().requires_grad_(False)

    def questions(self, identifier: str, class_noun: str) -> list[Question]:
        """What to ask of a model about a subject of class `class_noun` (see `questions`)."""
        return questions(identifier, class_noun)

    def accepts(self, embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Whether each picture shows the references' thing: cosine to their mean direction.

        Unit rows N x D and M x D -> bool [N]. `rates` says how often that is right.
        """
        return cosine_to_mean(embeddings, references) >= self.rates["threshold"]

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image], batch: int = 64) -> list[Reading]:
        """What each picture shows; pictures of another size are resized to 64 x 64."""
        readings = []
        for start in range(0, len(pictures), batch):
            out = self(as_batch(pictures[start : start + batch]))
            best = {name: out[name].argmax(1).tolist() for name in VOCABULARY}
            for i in range(len(out["none"])):
                words = {name: VOCABULARY[name][best[name][i]] for name in VOCABULARY}
                readings.append(
                    Reading(words, bool(out["none"][i] > 0), out["embedding"][i].numpy())
                )
        return readings


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An oracle's weights as its file holds them: float16, the widest layers int8.

    Of these each row is round(row / scale) with scale = max |row| / 127, kept as NAME.scale.
    """
    file = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for name in WIDE:
        scale = state[name].abs().amax(1, keepdim=True) / 127
        file[name] = (state[name] / scale.clamp_min(1e-12)).round().to(torch.int8)
        file[f"{name}.scale"] = scale
    return file


def unpacked(file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`, float32, up to its rounding."""
    state = {k: v.float() if v.is_floating_point() else v for k, v in file.items()}
    for name in WIDE:
        state[name] = state[name].float() * state.pop(f"{name}.scale")
    return state


def cosine_to_mean(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine of each unit row of N x D to the mean direction of the rows of M x D: [N]."""
    mean = references.mean(axis=0)
    return embeddings @ (mean / np.linalg.norm(mean))


def questions(identifier: str, class_noun: str) -> list[Question]:
    """Twelve prompts about the subject, one about its class, two about each other class.

    The subject's stand in an order whose even and odd places hold three settings each, and the
    accessories three to two (with the bare prompt). A class noun that the world does not have is
    not checked, and all of the world's are others.
    """
    known = {"class": class_noun} if class_noun in NOUNS else {}
    asked = [
        Question(
            "subject",
            compose(class_noun, setting=setting, identifier=identifier),
            {**known, "setting": setting},
        )
        for setting in ASKED_SETTINGS
    ]
    asked += [
        Question(
            "subject",
            compose(class_noun, accessory=accessory, identifier=identifier),
            {**known, "accessory": accessory},
        )
        for accessory in ACCESSORIES[1:]
    ]
    asked.append(Question("subject", compose(class_noun, identifier=identifier), known))
    asked.append(Question("class", compose(class_noun), known))
    return asked + [q for noun in NOUNS if noun != class_noun for q in _unrelated(noun)]


def _unrelated(noun: str) -> list[Question]:
    """The bare noun, and the noun in a colour and a setting that are always the same."""
    place = NOUNS.index(noun)
    colour = tuple(COLOURS)[place]
    setting = SETTINGS[3 * place % len(SETTINGS)]
    return [
        Question("unrelated", compose(noun), {"class": noun}),
        Question(
            "unrelated",
            compose(noun, colour, setting),
            {"class": noun, "colour": colour, "setting": setting},
        ),
    ]


def as_batch(pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures -> [N, 3, 64, 64] in [-1, 1]."""
    arrays = [
        np.asarray(p.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for p in pictures
    ]
    return rearrange(torch.from_numpy(np.stack(arrays)), "n h w c -> n c h w").float() / 127.5 - 1


def load_oracle() -> StorybookOracle:
    """The shipped oracle: what `evaluation.oracle` names."""
    return StorybookOracle.load()
