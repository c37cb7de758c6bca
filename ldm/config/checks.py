"""What values are allowed: ranges of single keys, and combinations that cannot work."""

import math
import re
from collections.abc import Iterator
from typing import Any

from PIL import ImageColor

from ldm.config.schema import Config

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "data.resolution": 8,
    "data.crops": 1,
    "prior.count": 1,
    "prior.batch": 1,
    "prior.weight": 0,
    "prior.seed": 0,
    "prior.scale": 0,
    "prior.steps": 1,
    "prior.sampling_batch": 1,
    "training.steps": 1,
    "training.batch": 1,
    "training.accumulate": 1,
    "training.weight_decay": 0,
    "training.warmup": 0,
    "training.save_every": 1,
    "snapshots.every": 1,
    "snapshots.keep": 1,
    "sampling.steps": 1,
    "sampling.scale": 0,
    "sampling.rescale": 0,
    "sampling.batch": 1,
    "samples.every": 0,
    "samples.count": 1,
    "samples.seed": 0,
    "trainer.nodes": 1,
    "evaluation.images": 1,
    "evaluation.seed": 0,
}
MORE_THAN: dict[str, float] = {
    "training.learning_rate": 0,
    "training.text_encoder_learning_rate": 0,
    "training.gradient_clip": 0,
    "training.min_snr_gamma": 0,
}
AT_MOST: dict[str, float] = {
    "training.learning_rate": 1,
    "training.text_encoder_learning_rate": 1,
    "sampling.rescale": 1,
}

STRATEGIES = ("auto", "ddp")


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key; None below a section that is None."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def range_problems(config: Config) -> Iterator[str]:
    """One line per number outside its range."""
    for key in sorted({*AT_LEAST, *MORE_THAN, *AT_MOST}):
        value = value_at(config, key)
        if value is None:
            continue
        if not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
        elif key in AT_LEAST and value < AT_LEAST[key]:
            yield f"{key}={value}: must be at least {AT_LEAST[key]}"
        elif key in MORE_THAN and value <= MORE_THAN[key]:
            yield f"{key}={value}: must be more than {MORE_THAN[key]}"
        elif key in AT_MOST and value > AT_MOST[key]:
            yield f"{key}={value}: must be at most {AT_MOST[key]}"
    betas = config.training.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"training.betas={betas}: must be two numbers from 0 up to, not including, 1"


def combination_problems(config: Config) -> Iterator[str]:
    """One line per impossible combination of keys."""
    yield from _subject_problems(config)
    yield from _prior_problems(config)
    training, model = config.training, config.model
    if training.batch % max(training.accumulate, 1):
        yield (
            f"training.batch={training.batch}: must be a multiple of "
            f"training.accumulate={training.accumulate}"
        )
    if training.warmup > training.steps:
        yield f"training.warmup={training.warmup}: longer than training.steps={training.steps}"
    if training.text_encoder_learning_rate is not None and not model.train_text_encoder:
        yield (
            f"training.text_encoder_learning_rate={training.text_encoder_learning_rate}: nothing "
            "uses it where model.train_text_encoder=false; set one of them"
        )
    if config.samples.every and not config.samples.prompts:
        yield "samples.prompts=[]: nothing to draw; give prompts, or set samples.every=0"
    if not re.fullmatch(r"auto|-1|\d+(,\d+)*,?", config.trainer.devices):
        yield f"trainer.devices={config.trainer.devices}: must be auto, a number or a list as 0,2"
    if config.trainer.strategy not in STRATEGIES:
        yield (
            f"trainer.strategy={config.trainer.strategy}: must be {' or '.join(STRATEGIES)}; "
            "grids, snapshots and numbers need all weights in one process"
        )
    if config.name is not None and not re.fullmatch(r"[\w][\w.-]*", config.name):
        yield f"name={config.name!r}: it ends a folder's name; use letters, digits, - _ and ."
    oracle = config.evaluation and config.evaluation.oracle
    if oracle and not re.fullmatch(r"[\w.]+:\w+", oracle):
        yield f"evaluation.oracle={oracle!r}: must look like package.module:Name, or be null"


def _subject_problems(config: Config) -> Iterator[str]:
    subject = config.subject
    for key in ("pictures", "class_noun"):
        if not getattr(subject, key).strip():
            yield f"subject.{key} is empty; give " + (
                "the folder of your pictures" if key == "pictures" else "what the subject is one of"
            )
    if not subject.prompt:
        yield "subject.prompt=[]: give at least one prompt, such as 'a photo of [V] dog'"
    try:
        opaque = len(ImageColor.getrgb(subject.background)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        yield f"subject.background={subject.background!r}: must be a colour as white or '#ffffff'"
    for prompt in subject.prompt:
        named = subject.identifier.strip() and contains_word(prompt, subject.identifier)
        if "[V]" not in prompt and not named:
            yield (
                f"subject.prompt={prompt!r}: does not name the subject; put [V] where "
                f"the identifier belongs, as in 'a photo of [V] {subject.class_noun}'"
            )


def _prior_problems(config: Config) -> Iterator[str]:
    prior, subject = config.prior, config.subject
    if prior is None:
        return
    noun, identifier = subject.class_noun.strip(), subject.identifier.strip()
    if noun and not contains_word(prior.prompt, noun):
        yield (
            f"prior.prompt={prior.prompt!r}: does not contain the class noun "
            f"subject.class_noun={noun!r}; write it as 'a photo of a {noun}', or set prior=null"
        )
    if "[V]" in prior.prompt or (identifier and contains_word(prior.prompt, identifier)):
        yield f"prior.prompt={prior.prompt!r}: must not name the subject; leave the identifier out"
    if prior.batch % max(config.training.accumulate, 1):
        yield (
            f"prior.batch={prior.batch}: must be a multiple of "
            f"training.accumulate={config.training.accumulate}"
        )


def contains_word(text: str, word: str) -> bool:
    """Whether `word` (or its plural) stands in `text` as a word, in any case.

    >>> contains_word("Robots on the beach", "robot"), contains_word("a caterpillar", "cat")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(e?s)?(?!\w)", text, re.IGNORECASE) is not None
