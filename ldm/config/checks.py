"""Which combinations of keys cannot work."""

import math
import re
from collections.abc import Iterator

from ldm.config.schema import Config

STRATEGIES = ("auto", "ddp")
# Those that can step one weight without the others.
ALONE = ("adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion")
OPTIMIZERS = (*ALONE, "prodigy", "schedule_free_adamw")


def combination_problems(config: Config) -> Iterator[str]:
    """One line per impossible combination of keys."""
    yield from _adapter_problems(config)
    yield from _subject_problems(config)
    yield from _more_subjects_problems(config)
    yield from _prior_problems(config)
    yield from _training_problems(config)
    yield from _stepping_problems(config)
    if config.data.enlarge and config.data.aspect == "square":
        yield (
            "data.enlarge=true: is about data.aspect=buckets, squares are enlarged without it; "
            "set both or neither"
        )
    if config.samples.every and not config.samples.prompts:
        yield "samples.prompts=[]: nothing to draw; give prompts, or set samples.every=0"
    if config.samples.vae is not None and not config.samples.every:
        yield (
            f"samples.vae={config.samples.vae}: nothing uses it where samples.every=0; set "
            "samples.every, or leave samples.vae null"
        )
    if not re.fullmatch(r"auto|-1|\d+(,\d+)*,?", config.trainer.devices):
        yield f"trainer.devices={config.trainer.devices}: must be auto, a number or a list as 0,2"
    if config.trainer.strategy not in STRATEGIES:
        yield (
            f"trainer.strategy={config.trainer.strategy}: must be {' or '.join(STRATEGIES)}; "
            "grids, snapshots and numbers need all weights in one process"
        )
    if config.name is not None and not re.fullmatch(r"[\w][\w.-]*", config.name):
        yield f"name={config.name!r}: it ends a folder's name; use letters, digits, - _ and ."
    yield from _evaluation_problems(config)


def _adapter_problems(config: Config) -> Iterator[str]:
    """One line per impossible combination of keys of the section `adapter`."""
    adapter = config.adapter
    if adapter is None:
        return
    if adapter.kind == "oft":
        if adapter.conv:
            yield "adapter.conv=true: oft is for linear layers alone; take another adapter.kind"
        for key in ("alpha", "text_encoder_alpha"):
            if getattr(adapter, key) is not None:
                yield f"adapter.{key}={getattr(adapter, key)}: oft has no alpha; leave it null"
    if (smallest := adapter.timestep_rank) is not None:
        if adapter.kind not in ("lora", "rslora"):
            yield (
                f"adapter.timestep_rank={smallest}: is for lora and rslora, not for "
                f"{adapter.kind}; leave it null, or take another adapter.kind"
            )
        if smallest >= adapter.rank:
            yield (
                f"adapter.timestep_rank={smallest}: must be less than "
                f"adapter.rank={adapter.rank}, half of it is usual; or leave it null"
            )
    if adapter.frozen != "full" and config.training.precision == "fp32":
        yield (
            f"adapter.frozen={adapter.frozen}: the base is computed with in half precision then; "
            "set training.precision=bf16-mixed (or 16-mixed), or adapter.frozen=full"
        )
    if not config.model.train_text_encoder:
        for key in ("text_encoder_rank", "text_encoder_alpha"):
            if getattr(adapter, key) is not None:
                yield (
                    f"adapter.{key}={getattr(adapter, key)}: nothing uses it where "
                    "model.train_text_encoder=false; leave it null"
                )


def _training_problems(config: Config) -> Iterator[str]:
    training, model = config.training, config.model
    if training.batch % max(training.accumulate, 1):
        yield (
            f"training.batch={training.batch}: must be a multiple of "
            f"training.accumulate={training.accumulate}"
        )
    if training.warmup > training.steps * (1 - training.pivotal) and training.pivotal <= 1:
        after = " without training.pivotal's share of them" if training.pivotal else ""
        steps = f"training.steps={training.steps}{after}"
        yield f"training.warmup={training.warmup}: longer than {steps}"
    if 0 < training.text_encoder_stop < training.pivotal <= 1:
        yield (
            f"training.text_encoder_stop={training.text_encoder_stop}: the embedding is trained "
            f"alone until training.pivotal={training.pivotal}; stop no sooner, or take 0 to train "
            "nothing but the embedding of the text encoder"
        )
    if training.text_encoder_stop < 1 and not model.train_text_encoder:
        yield (
            f"training.text_encoder_stop={training.text_encoder_stop}: nothing uses it where "
            "model.train_text_encoder=false; set one of them"
        )
    if training.pivotal and not config.subject.identifier.strip():
        yield f"training.pivotal={training.pivotal}: there is no subject.identifier to train"
    if training.optimizer not in OPTIMIZERS and not re.fullmatch(r"[\w.]+:\w+", training.optimizer):
        yield (
            f"training.optimizer={training.optimizer}: must be one of {', '.join(OPTIMIZERS)}, or "
            "look like package.module:Class"
        )
    if training.optimizer not in OPTIMIZERS and training.betas is not None:
        yield (
            f"training.betas={training.betas}: {training.optimizer} does not get them; "
            "set them in training.optimizer_arguments"
        )
    rate = training.text_encoder_learning_rate
    if training.optimizer == "prodigy" and rate not in (None, training.learning_rate):
        yield (
            f"training.text_encoder_learning_rate={rate}: prodigy takes one rate for all; leave it "
            "null, or equal to training.learning_rate"
        )
    for name in {"lr", "params"} & training.optimizer_arguments.keys():
        yield f"training.optimizer_arguments={{{name}: ...}}: set training.learning_rate instead"
    objective = config.objective
    if objective.timestep_max is not None and objective.timestep_min >= objective.timestep_max:
        yield (
            f"objective.timestep_min={objective.timestep_min}: must be less than "
            f"objective.timestep_max={objective.timestep_max}, which is not trained itself"
        )
    if config.ema.decay >= 1:
        yield f"ema.decay={config.ema.decay}: must be less than 1, or the average never moves"


def _stepping_problems(config: Config) -> Iterator[str]:
    """What weights in bfloat16 and an optimizer in the backward pass do not go with."""
    training = config.training
    for key, on in {
        "training.weights=bf16": training.weights == "bf16",
        "training.fused_backward=true": training.fused_backward,
    }.items():
        if on and training.optimizer not in ALONE:
            yield (
                f"{key}: steps one weight at a time, which training.optimizer="
                f"{training.optimizer} is not known to bear; take one of {', '.join(ALONE)}"
            )
    if training.weights == "bf16":
        if config.adapter:
            yield (
                "training.weights=bf16: an adapter's weights are few; leave it fp32, and set "
                "adapter.frozen=half (or int8, nf4) for the base's"
            )
        if training.precision in ("fp32", "16-mixed"):
            yield (
                f"training.weights=bf16: is computed with in bfloat16, not training.precision="
                f"{training.precision}; set bf16-mixed"
            )
    if training.fused_backward:
        for key, value, off, why in (
            ("gradient_clip", training.gradient_clip, None, "needs the whole gradient first"),
            ("accumulate", training.accumulate, 1, "needs all passes' gradients first"),
            ("pivotal", training.pivotal, 0, "keeps some rows of a gradient"),
        ):
            if value != off:
                shown = "null" if off is None else off
                yield (
                    f"training.fused_backward=true: training.{key}={value} {why}; set "
                    f"training.{key}={shown}, or fused_backward=false"
                )
        if training.precision == "16-mixed":
            yield (
                "training.fused_backward=true: training.precision=16-mixed scales gradients, and "
                "needs all of them to find its scale; set bf16-mixed"
            )
        if config.trainer.strategy == "ddp" or config.trainer.nodes > 1:
            yield (
                "training.fused_backward=true: several processes take the mean of their gradients "
                "first; set trainer.strategy=auto, trainer.nodes=1 and trainer.devices=1"
            )


def _evaluation_problems(config: Config) -> Iterator[str]:
    evaluation, subject = config.evaluation, config.subject
    if evaluation is None:
        return
    oracle, every = evaluation.oracle, evaluation.every
    if oracle and not re.fullmatch(r"[\w.]+:\w+", oracle):
        yield f"evaluation.oracle={oracle!r}: must look like package.module:Name, or be null"
    if every is not None and every % max(config.snapshots.every, 1):
        yield (
            f"evaluation.every={every}: must be a multiple of "
            f"snapshots.every={config.snapshots.every}: what is measured is a snapshot"
        )
    if evaluation.patience is not None and every is None:
        yield (
            f"evaluation.patience={evaluation.patience}: nothing is measured while training; set "
            f"evaluation.every, as {config.snapshots.every}, or leave patience null"
        )
    if every is None and not evaluation.final:
        yield (
            "evaluation.final=false: with evaluation.every=null nothing is ever measured; set one "
            "of them, or evaluation=null"
        )
    steps = config.training.steps
    if every is not None and every > steps and not evaluation.final:
        yield (
            f"evaluation.every={every}: with evaluation.final=false and training.steps={steps} "
            "nothing is ever measured; lower it, set final, or evaluation=null"
        )
    if not (oracle or evaluation.dino or evaluation.clip):
        yield (
            "evaluation.oracle=null: with dino and clip null too there is nothing to compare "
            "pictures with; set one of the three, or evaluation=null"
        )
    for name, margin in evaluation.margins.items():
        if not 0 <= margin < math.inf:
            yield f"evaluation.margins={{{name}: {margin}}}: must be a number of at least 0"
    identifier = subject.identifier.strip()
    for prompt in evaluation.prompts:
        if "[V]" not in prompt and not (identifier and contains_word(prompt, identifier)):
            yield f"evaluation.prompts={prompt!r}: does not name the subject; put [V] into it"
        yield from _other_subjects("evaluation.prompts", prompt)
    for prompt in evaluation.unrelated:
        if "[V" in prompt or (identifier and contains_word(prompt, identifier)):
            yield f"evaluation.unrelated={prompt!r}: must not name the subject"


def _subject_problems(config: Config) -> Iterator[str]:
    subject = config.subject
    for key in ("pictures", "class_noun"):
        if not getattr(subject, key).strip():
            yield f"subject.{key} is empty; give " + (
                "the folder of your pictures" if key == "pictures" else "what the subject is one of"
            )
    if not subject.prompt:
        yield "subject.prompt=[]: give at least one prompt, such as 'a photo of [V] dog'"
    if not _is_opaque(subject.background):
        yield f"subject.background={subject.background!r}: must be a colour as white or '#ffffff'"
    for prompt in subject.prompt:
        named = subject.identifier.strip() and contains_word(prompt, subject.identifier)
        if "[V]" not in prompt and not named:
            yield (
                f"subject.prompt={prompt!r}: does not name the subject; put [V] where "
                f"the identifier belongs, as in 'a photo of [V] {subject.class_noun}'"
            )
        yield from _other_subjects("subject.prompt", prompt)


def _is_opaque(colour: str) -> bool:
    """Whether Pillow reads it as red, green and blue alone."""
    if colour == "white" or re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return True
    from PIL import ImageColor  # for a rarer one: it takes as long as all other checks

    try:
        return len(ImageColor.getrgb(colour)) == 3
    except ValueError:
        return False


def _other_subjects(key: str, prompt: str) -> Iterator[str]:
    if found := re.search(r"\[V\d+\]", prompt):
        yield f"{key}={prompt!r}: {found[0]} is for samples.prompts alone; a subject's own is [V]"


def _more_subjects_problems(config: Config) -> Iterator[str]:
    taken = [config.subject.identifier.strip().lower()]
    for number, subject in enumerate(config.subjects):
        place = f"subjects[{number}]"
        for key in ("pictures", "identifier", "class_noun"):
            if not getattr(subject, key).strip():
                yield f"{place}.{key} is missing; each of several subjects needs one of its own"
        identifier = subject.identifier.strip().lower()
        if identifier and identifier in taken:
            yield f"{place}.identifier={subject.identifier}: another subject has it already"
        taken.append(identifier)
        for prompt in subject.prompt:
            if "[V]" not in prompt and not (identifier and contains_word(prompt, identifier)):
                yield f"{place}.prompt={prompt!r}: does not name the subject; put [V] into it"
            yield from _other_subjects(f"{place}.prompt", prompt)
        for prompt in subject.prior_prompt:
            noun = (f"{place}.class_noun", subject.class_noun)
            key = f"{place}.prior_prompt"
            yield from _class_prompt_problems(key, prompt, *noun, subject.identifier)


def _prior_problems(config: Config) -> Iterator[str]:
    prior, subject = config.prior, config.subject
    if prior is None:
        return
    if prior.images != "cached" and prior.folder:
        yield f"prior.folder={prior.folder}: is not used with prior.images={prior.images}; drop one"
    if prior.folder and config.subjects:
        yield f"prior.folder={prior.folder}: holds one class, with several subjects let it be null"
    if prior.images == "subject" and prior.target == "data":
        yield (
            "prior.images=subject: the subject's own pictures keep a class only with "
            "prior.target=base; with prior.target=data they would turn it into the subject"
        )
    if not prior.prompt:
        yield "prior.prompt=[]: give at least one, such as 'a photo of a dog', or set prior=null"
    for prompt in prior.prompt:
        noun = ("subject.class_noun", subject.class_noun)
        yield from _class_prompt_problems("prior.prompt", prompt, *noun, subject.identifier)
    if prior.batch % max(config.training.accumulate, 1):
        yield (
            f"prior.batch={prior.batch}: must be a multiple of "
            f"training.accumulate={config.training.accumulate}"
        )


def _class_prompt_problems(
    key: str, prompt: str, noun_key: str, noun: str, identifier: str
) -> Iterator[str]:
    """A class prompt holds the class noun and never the identifier."""
    noun, identifier = noun.strip(), identifier.strip()
    if noun and not contains_word(prompt, noun):
        yield (
            f"{key}={prompt!r}: does not contain the class noun {noun_key}={noun!r}; write it as "
            f"'a photo of a {noun}', or set prior=null"
        )
    if "[V" in prompt or (identifier and contains_word(prompt, identifier)):
        yield f"{key}={prompt!r}: must not name the subject; leave the identifier out"


def contains_word(text: str, word: str) -> bool:
    """Whether `word` (or its plural) stands in `text` as a word, in any case.

    >>> contains_word("Robots on the beach", "robot"), contains_word("a caterpillar", "cat")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(e?s)?(?!\w)", text, re.IGNORECASE) is not None
