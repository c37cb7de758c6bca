"""What a run is measured with and asked, from its configuration."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ldm.config import Config, Evaluation, instantiate
from ldm.data.prompts import fill, names_subject
from ldm.errors import UserError
from ldm.run.subjects import subjects_of

if TYPE_CHECKING:
    from ldm.evaluation.features import Extractor
    from ldm.evaluation.lpips import LPIPS
    from ldm.evaluation.oracle import Question

log = logging.getLogger(__name__)

# Of other things, for a base that no oracle knows: a dozen, none of them what people train on.
UNRELATED = (
    "a photo of a mountain lake at sunrise",
    "a photo of a crowded street market",
    "a photo of a red bicycle leaning against a wall",
    "a photo of a bowl of fruit on a table",
    "a photo of a lighthouse in a storm",
    "a photo of a wooden bridge in a forest",
    "a photo of an old bookshop",
    "a photo of a sailing boat at sea",
    "a photo of a city skyline at night",
    "a photo of a field of sunflowers",
    "a watercolor painting of a village",
    "a pencil drawing of a steam train",
)


@dataclass
class Instruments:
    """Whatever of them can be had; `missing` says of each other why not."""

    oracle: Any = None
    extractors: "list[Extractor]" = field(default_factory=list)
    lpips: "LPIPS | None" = None
    missing: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is a space to compare pictures in."""
        return self.oracle is not None or bool(self.extractors)


def load_instruments(evaluation: Evaluation, device: str | torch.device = "cpu") -> Instruments:
    """Load what the section names. UserError: a dotted path or folder that holds something else."""
    from ldm.evaluation.features import load_extractors

    made = Instruments(make_oracle(evaluation.oracle))
    made.extractors, made.missing = load_extractors(evaluation.dino, evaluation.clip, device)
    if evaluation.lpips:
        from ldm.evaluation.hub import Missing
        from ldm.evaluation.lpips import LPIPS

        try:
            made.lpips = LPIPS(evaluation.lpips, device)
        except Missing as error:
            made.missing[error.name] = error.reason
            log.warning("not measured with %s: %s", error.name, error.reason)
    return made


def make_oracle(dotted: str | None) -> Any:
    """What `evaluation.oracle` names; None where it names none. UserError: it cannot be had."""
    if not dotted:
        return None
    try:
        return instantiate(dotted)
    except UserError as error:
        raise UserError(
            f"evaluation.oracle={dotted}: {error}; evaluation.oracle=null does without"
        ) from error


def questions_of(config: Config, oracle: Any) -> "list[Question]":
    """What a model is asked: the section's own prompts, else the oracle's, else the run's.

    UserError: no prompt names the subject.
    """
    from ldm.evaluation.oracle import Question

    evaluation, (subject, *_) = config.evaluation, subjects_of(config)
    assert evaluation is not None
    told = oracle.questions(subject.identifier, subject.class_noun) if oracle else []
    asked = {kind: [q for q in told if q.about == kind] for kind in ("subject", "class")}
    others = [question for question in told if question.about == "unrelated"]
    if evaluation.prompts or not asked["subject"]:
        sampled = [p for p in config.samples.prompts if names_subject(p, subject.identifier)]
        prompts = evaluation.prompts or [p for p in sampled if "[V2]" not in p]
        filled = dict.fromkeys(fill(prompt, subject.identifier) for prompt in prompts)
        asked["subject"] = [Question("subject", prompt, {}) for prompt in filled]
    if not asked["class"]:
        asked["class"] = [Question("class", class_prompt_of(config), {})]
    if evaluation.unrelated or not others:
        prompts = evaluation.unrelated or list(UNRELATED)
        others = [Question("unrelated", prompt, {}) for prompt in prompts]
    if not asked["subject"]:
        raise UserError(
            "evaluation.prompts=[]: no prompt in samples.prompts names the subject; give some, as "
            f"'a photo of [V] {subject.class_noun} on the beach'"
        )
    return [*asked["subject"], *asked["class"], *others]


def class_prompt_of(config: Config) -> str:
    """The bare class prompt: the first of the class images', else the subject's with a for [V]."""
    subject, *_ = subjects_of(config)
    if subject.prior_prompt:
        return fill(subject.prior_prompt[0], subject.identifier)
    return subject.prompt[0].replace("[V]", "a")
