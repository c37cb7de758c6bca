"""An oracle's answers about a model: does it draw what it is told, and the subject?"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ldm.evaluation import metrics
from ldm.evaluation.metrics import Score, share, similarity_to, spread
from ldm.evaluation.oracle import Oracle, Question, Reading
from ldm.models.base import BaseModel
from ldm.sampling.generate import generate

CLASS_FACTOR = 8  # class prompts are few: they get this many times the pictures
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)


def measure(
    base: BaseModel,
    oracle: Oracle,
    identifier: str,
    class_noun: str,
    references: Sequence[Image.Image],
    images: int,
    seed: int,
    sampling: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Ask `oracle` its questions about what `base` draws; metric name -> score.

    images: pictures per subject prompt; class prompts get CLASS_FACTOR times as many. Seeds count
    from `seed`, the same for every model measured. references: pictures of the subject, held out
    from training if there are any; without any there is no similarity. sampling: `generate`'s
    keyword arguments.
    """
    asked: list[Question] = []
    for question in oracle.questions(identifier, class_noun):
        asked += [question] * (images * (CLASS_FACTOR if question.about == "class" else 1))
    prompts = [question.prompt for question in asked]
    seeds = range(seed, seed + len(asked))
    pictures = list(generate(base, prompts, seeds, progress=progress, **sampling))
    return scores(asked, oracle.read(pictures), oracle.read(references) if references else [])


def scores(
    asked: Sequence[Question], readings: Sequence[Reading], references: Sequence[Reading]
) -> dict[str, Score]:
    """Metric name -> score, from each picture's question and reading.

    "subject/setting": share of subject pictures with the setting that was asked for; likewise
    for every attribute asked. "subject/none": share of them that show nothing of the world.
    "subject/similarity": mean cosine to the subject's own pictures, where there are any.
    "class/diversity": mean pairwise distance of the class pictures, which falls when everything
    looks like the subject.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    embeddings: dict[str, list[np.ndarray]] = defaultdict(list)
    for question, reading in zip(asked, readings, strict=True):
        for attribute, word in question.expected.items():
            hit = not reading.none and reading.words[attribute] == word
            right[f"{question.about}/{attribute}"].append(hit)
        right[f"{question.about}/none"].append(reading.none)
        embeddings[question.about].append(reading.embedding)
    result = {name: share(hits) for name, hits in sorted(right.items())}
    own = np.stack([reading.embedding for reading in references]) if references else None
    if embeddings["subject"] and own is not None:
        result["subject/similarity"] = similarity_to(np.stack(embeddings["subject"]), own)
    if len(embeddings["class"]) > 1:
        drawn = np.stack(embeddings["class"])
        result["class/diversity"] = spread(drawn)
        if own is not None:
            result["class/similarity"] = similarity_to(drawn, own)
    return result


def ceiling(references: Sequence[Reading]) -> Score:
    """`metrics.ceiling` of the subject's own pictures, at least two."""
    return metrics.ceiling(np.stack([reading.embedding for reading in references]))
