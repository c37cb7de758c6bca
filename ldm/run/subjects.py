"""The subjects of a run: the one in `subject`, and those in `subjects` with what they leave out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.config import Config, MoreSubject
from ldm.data.images import find_pictures
from ldm.data.prompts import exchange_noun, fill, prompts_of


@dataclass(frozen=True)
class SubjectInputs:
    """What is trained on for one subject."""

    identifier: str
    class_noun: str
    pictures: list[Path]
    prompts: list[list[str]]  # per picture, those to draw from, filled in
    class_prompts: list[str]  # the bare one first; none without prior
    weight: float


def subjects_of(config: Config) -> list[MoreSubject]:
    """Every subject, the first one too, with all that follows from the first written out."""
    first = config.subject
    prior_prompts = config.prior.prompt if config.prior else []
    subjects = [
        MoreSubject(
            first.pictures,
            first.identifier,
            first.class_noun,
            first.prompt,
            prior_prompts,
            first.weight,
        )
    ]
    for other in config.subjects:
        nouns = (first.class_noun, other.class_noun)
        prompts = other.prompt or [exchange_noun(text, *nouns) for text in first.prompt]
        priors = other.prior_prompt or [exchange_noun(text, *nouns) for text in prior_prompts]
        subjects.append(replace(other, prompt=prompts, prior_prompt=priors))
    return subjects


def identifiers_of(config: Config) -> list[str]:
    """The identifiers that [V], [V2], ... stand for."""
    return [config.subject.identifier, *(subject.identifier for subject in config.subjects)]


def find_inputs(config: Config) -> Iterator[SubjectInputs]:
    """Find each subject's pictures and captions. UserError for a folder without any."""
    for subject in subjects_of(config):
        pictures = find_pictures(Path(subject.pictures))
        templates = subject.prompt
        yield SubjectInputs(
            subject.identifier,
            subject.class_noun,
            pictures,
            prompts_of(pictures, templates, subject.identifier, config.subject.captions),
            [fill(prompt, subject.identifier) for prompt in subject.prior_prompt],
            subject.weight,
        )


def class_prompts(subjects: list[SubjectInputs]) -> list[str]:
    """The distinct class prompts: two dogs share their class images."""
    return [*dict.fromkeys(prompt for subject in subjects for prompt in subject.class_prompts)]
