"""Which word names the subject, and what the base draws for it and for the class noun."""

import itertools
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ldm.config import Config
from ldm.data.prompts import fill
from ldm.models.text import tokens_of
from ldm.run.measure.instruments import class_prompt_of
from ldm.run.prepare import Prepared
from ldm.run.settings import as_trained
from ldm.sampling.generate import generate

SEEDS = range(6)
SUGGESTED = 8  # words that are looked at
RARE = 2 / 3  # of all merges: a word that is learnt later is rare
# Of the distance between two pictures of the class, see `Word`, by the oracle and by pixels. Of the
# embedded base's rare words none is above .12 and .03, of what its captions name (colours, things,
# settings) none below .33 and .17; not tried on other bases.
MOVED_SEEN, MOVED_PIXELS = 0.2, 0.12
STEPS = 12  # of the sampler, at most


@dataclass
class Word:
    """A candidate for the identifier.

    rank: place among the tokenizer's merges, which are learnt in order of frequency; None: it is
    none of them. moved: mean distance between "a WORD CLASS" and "a CLASS" of the same seed, as a
    share of that between two pictures of "a CLASS": 0, the word changes nothing; 1, another
    picture. varied: mean distance among pictures of "a WORD CLASS", as a share of the same.
    """

    word: str
    tokens: list[str]
    rank: int | None
    merges: int
    moved: float | None = None
    varied: float | None = None
    limit: float = MOVED_PIXELS  # what `moved` may be

    @property
    def concerns(self) -> list[str]:
        """What speaks against it."""
        found = []
        if len(self.tokens) != 1:
            pieces = " + ".join(token.removesuffix("</w>") for token in self.tokens)
            found.append(f"{len(self.tokens)} tokens ({pieces}), each with a meaning of its own")
        elif self.rank is not None and self.rank < RARE * self.merges:
            found.append(f"a common word: number {self.rank} of {self.merges} merges by frequency")
        if self.moved is not None and self.moved > self.limit:
            found.append(
                f"already means something: it moves the base's pictures by {self.moved:.0%} of the "
                "distance between two of the class"
            )
        return found


def word_of(tokenizer: Any, word: str) -> Word:
    """What the tokenizer makes of a word."""
    ranks = merge_ranks(tokenizer)
    tokens = tokens_of(tokenizer, word)
    rank = ranks.get(tokens[0]) if len(tokens) == 1 else None
    return Word(word, tokens, rank, len(ranks))


def merge_ranks(tokenizer: Any) -> dict[str, int]:
    """Token -> place of the merge that makes it, the most frequent first (arXiv 1508.07909)."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return {"".join(pair): rank for rank, pair in enumerate(pairs)}


def rare_words(tokenizer: Any, count: int = SUGGESTED) -> list[Word]:
    """Single tokens of 3 or 4 letters from the rare end of the merges.

    Those without a vowel, which are no word, come first, then the rarest.
    """
    ranks = merge_ranks(tokenizer)
    found = []
    for token, rank in ranks.items():
        word = token.removesuffix("</w>")
        if word != token and rank >= RARE * len(ranks) and re.fullmatch("[a-z]{3,4}", word):
            found.append((len(re.findall("[aeiouy]", word)), -rank, word))
    return [word_of(tokenizer, word) for *_, word in sorted(found)[:count]]


class Drawings:
    """Pictures of the untouched base, the same seeds for every prompt; `space` names the measure.

    That is the oracle's embedding (Euclidean) where the configuration has an oracle, else
    16 x 16 pixels (root mean square): that tells other colours and forms, and needs no download.
    """

    def __init__(self, config: Config, ready: Prepared) -> None:
        self.config, self.ready, self.oracle = config, ready, ready.instruments.oracle
        self.space = "the oracle's embedding" if self.oracle else "16 x 16 pixels"
        evaluation, sampling = config.evaluation, config.sampling
        self.steps = min((evaluation.steps if evaluation else None) or sampling.steps, STEPS)
        self.seconds = 0.0  # spent drawing
        self.made: dict[str, list[Image.Image]] = {}

    @property
    def class_prompt(self) -> str:
        return class_prompt_of(self.config)

    def prompt_with(self, word: str) -> str:
        return fill(self.config.subject.prompt[0], word)

    def of(self, prompt: str) -> list[Image.Image]:
        """One picture a seed."""
        if prompt not in self.made:
            began, sampling, side = time.perf_counter(), self.config.sampling, self.ready.resolution
            self.made[prompt] = list(
                generate(
                    as_trained(self.config, self.ready.base),
                    [prompt] * len(SEEDS),
                    list(SEEDS),
                    scale=sampling.scale,
                    sampler=sampling.sampler,
                    steps=self.steps,
                    height=side,
                    width=side,
                    batch=sampling.batch,
                )
            )
            self.seconds += time.perf_counter() - began
        return self.made[prompt]

    def seconds_per_step(self) -> float:
        """Of one picture, guided, measured on all that was drawn."""
        return self.seconds / max(1, len(self.made) * len(SEEDS) * self.steps)

    def measure(self, word: Word) -> None:
        """Draw the word beside the class, and see how far its pictures lie."""
        plain = self._points(self.of(self.class_prompt))
        named = self._points(self.of(self.prompt_with(word.word)))
        usual = max(_spread(plain), 1e-6)
        apart = np.linalg.norm(named - plain, axis=1)
        word.moved = float(apart.mean() / usual)
        word.varied = _spread(named) / usual
        word.limit = MOVED_SEEN if self.oracle else MOVED_PIXELS

    def drawn_share(self) -> float | None:
        """The share of class pictures that show the class; None where no oracle knows that."""
        if self.oracle is None:
            return None
        subject = self.config.subject
        asked = self.oracle.questions(subject.identifier, subject.class_noun)
        noun = next((q.expected.get("class") for q in asked if q.about == "class"), None)
        if noun is None:
            return None
        readings = self.oracle.read(self.of(self.class_prompt))
        return float(np.mean([r.words["class"] == noun and not r.none for r in readings]))

    def _points(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """[N, D]; what lies far apart looks different."""
        if self.oracle:
            return np.stack([reading.embedding for reading in self.oracle.read(pictures)])
        small = [p.convert("RGB").resize((16, 16), Image.Resampling.BOX) for p in pictures]
        return np.stack([np.asarray(p, dtype=np.float64).ravel() / 255 for p in small])


def _spread(points: np.ndarray) -> float:
    pairs = itertools.combinations(points, 2)
    return float(np.mean([np.linalg.norm(a - b) for a, b in pairs]))
