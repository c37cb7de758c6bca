"""What a run would do, said before it does it: `--dry-run`."""

import shutil
from pathlib import Path
from typing import Any

from ldm.config import Config, Prior
from ldm.models.text import tokens_of
from ldm.models.trainable import count_parameters, count_unread
from ldm.run.device import precision_of
from ldm.run.folder import existing_parent
from ldm.run.measure.evaluator import task_of
from ldm.run.memory.prediction import memory_lines, optimizer_bytes
from ldm.run.preflight.pictures import picture_warnings
from ldm.run.prepare import Prepared
from ldm.run.settings import filled
from ldm.run.subjects import class_prompts
from ldm.run.transform import bucket_line, subject_transform
from ldm.sampling.prior import class_image_folder, class_image_settings, count_missing

MIB = 2**20


def plan_lines(config: Config, ready: Prepared, run: Path) -> list[str]:
    """The plan of a run, a line each; nothing is made."""
    base, training = ready.base, config.training
    share = training.batch / len(ready.subjects)  # of each subject, whatever its pictures
    epochs = training.steps * share / len(ready.pictures)
    lines = [
        f"run folder    {run}",
        f"base          {base.source}, fingerprint {base.fingerprint[:12]}, "
        f"{base.prediction_type}, {ready.resolution} pixels",
        *_picture_lines(config, ready),
        *(f"warning       {line}" for line in picture_warnings(config, ready)),
        *_prompt_lines(config, ready),
        f"precision     {precision_of(config)}"
        + (", weights in bfloat16" if training.weights == "bf16" else ""),
        f"steps         {training.steps} of {training.batch} pictures"
        + (f" + {config.prior.batch} class images" if config.prior else "")
        + (f", in {training.accumulate} passes each" if training.accumulate > 1 else ""),
        f"epochs        {epochs:.1f} (each picture is seen {epochs:.0f} times)",
        *(f"class images  {line}" for line in _class_images(config, ready)),
        *(f"evaluation    {line}" for line in evaluation_lines(config, ready)),
        *_parameter_lines(config, ready),
    ]
    disk = disk_bytes(config, ready)
    free = shutil.disk_usage(existing_parent(run)).free
    short = "; NOT ENOUGH: keep fewer snapshots, or set logs=" if disk > free else ""
    lines.append(f"disk          about {disk / MIB:.0f} MiB of {free / MIB:.0f} free{short}")
    return [*lines, *(f"memory        {line}" for line in memory_lines(config, ready))]


def _picture_lines(config: Config, ready: Prepared) -> list[str]:
    transform, lines = subject_transform(config, ready), []
    for subject in ready.subjects:
        listed = ", ".join(picture.name for picture in subject.pictures)
        if transform.multiple:
            listed = bucket_line(transform, subject.pictures)
        lines.append(
            f"pictures      {len(subject.pictures)} of {subject.identifier!r} in "
            f"{subject.pictures[0].parent}: {listed}"
        )
    return lines


def _prompt_lines(config: Config, ready: Prepared) -> list[str]:
    prompts = [
        prompt for subject in ready.subjects for several in subject.prompts for prompt in several
    ]
    prompts += class_prompts(ready.subjects)
    prompts += filled(config, config.samples.prompts if config.samples.every else [])
    tokenizer, most = ready.base.tokenizer, ready.base.text.room
    lines = []
    for prompt in dict.fromkeys(prompts):
        tokens = tokens_of(tokenizer, prompt)
        over = f", {len(tokens) - most} too many: cut" if len(tokens) > most else ""
        shown = " ".join(token.replace("</w>", "_") for token in tokens)
        lines.append(f"prompt        {prompt!r} -> {shown} ({len(tokens)} tokens{over})")
    return lines


def _class_images(config: Config, ready: Prepared) -> list[str]:
    prior = config.prior
    if prior is None:
        return ["none (prior: null)"]
    if prior.images == "subject":
        return ["none: the subject's pictures, as the frozen base predicts them"]
    if prior.folder:
        return [f"{len(ready.own_class_pictures)} of your own in {prior.folder}, none to make"]
    prompts = class_prompts(ready.subjects)
    if prior.images == "live":
        return [f"{prior.count} at a time of {prompt!r}, made while training" for prompt in prompts]
    return [
        f"{prior.count} in {prior_folder(config, ready, prompt)}, "
        f"{_missing(config, ready, prompt)} to make"
        for prompt in prompts
    ]


def evaluation_lines(config: Config, ready: Prepared) -> list[str]:
    """What will be measured and with what, and what that takes beside training."""
    evaluation, tools = config.evaluation, ready.instruments
    if evaluation is None:
        return ["none (evaluation: null)"]
    of_base, of_snapshots = pictures_to_measure(config, ready)
    names = (["oracle"] if tools.oracle else []) + [each.space for each in tools.extractors]
    names += [tools.lpips.name] if tools.lpips else []
    steps = evaluation.steps or config.sampling.steps
    passes = steps * (1 if config.sampling.scale == 1 else 2)  # guidance: two predictions a step
    drawing = (of_base + of_snapshots) * passes
    samples = config.training.batch + (config.prior.batch if config.prior else 0)
    training = 3 * samples * config.training.steps  # backward costs about twice what forward does
    when = f"every {evaluation.every} steps and " if evaluation.every else ""
    lines = [
        f"{when}at the end, with {', '.join(names) or 'no network: nothing can be chosen'}",
        f"{of_snapshots} pictures of {_measured_snapshots(config)} snapshots, {of_base} of the "
        f"untouched base (kept in {evaluation.root} for all runs), {steps} steps each: about "
        f"{100 * drawing / (drawing + training):.0f} % of the time",
    ]
    return lines + [f"not measured with {what}: {why}" for what, why in tools.missing.items()]


def pictures_to_measure(config: Config, ready: Prepared) -> tuple[int, int]:
    """How many pictures evaluation has to draw: of the untouched base, of the snapshots."""
    evaluation = config.evaluation
    if evaluation is None:
        return 0, 0
    task = task_of(config, ready)
    there = Path(evaluation.root) / task.folder_of(ready.base.fingerprint)
    drawn = len(list(there.rglob("*.png")))
    each = len(task.asked)
    return max(0, each + len(task.again) - drawn), each * _measured_snapshots(config)


def _measured_snapshots(config: Config) -> int:
    """How many snapshots are measured; those that are pruned keep no pictures."""
    evaluation, snapshots = config.evaluation, config.snapshots
    assert evaluation is not None
    every = snapshots.every if evaluation.final else evaluation.every or snapshots.every
    count = -(-config.training.steps // every)
    if evaluation.every:
        return count
    return min(count, snapshots.keep or count)


def prior_folder(config: Config, ready: Prepared, prompt: str) -> Path:
    """Where the class images of this base, prompt and sampler settings lie."""
    prior = config.prior
    assert prior is not None
    settings = class_settings(prior, ready)
    return class_image_folder(prior.root, ready.base.fingerprint, prompt, settings)


def class_settings(prior: Prior, ready: Prepared) -> dict[str, Any]:
    """What, beside base and prompt, decides what the class images are."""
    bits = ready.base.bits
    return class_image_settings(
        prior.seed, prior.scale, prior.steps, prior.sampler, ready.resolution, bits
    )


def class_image_count(config: Config, ready: Prepared) -> int:
    """How many class images lie on disk: your own, or as many made ones as are asked for."""
    prior = config.prior
    if prior is None or prior.images != "cached":
        return 0
    if prior.folder:
        return len(ready.own_class_pictures)
    return prior.count * len(class_prompts(ready.subjects))


def missing_class_images(config: Config, ready: Prepared) -> int:
    """How many class images have to be made before training."""
    prior = config.prior
    if prior is None or prior.folder or prior.images != "cached":
        return 0
    return sum(_missing(config, ready, prompt) for prompt in class_prompts(ready.subjects))


def _missing(config: Config, ready: Prepared, prompt: str) -> int:
    prior = config.prior
    assert prior is not None
    folder = prior_folder(config, ready, prompt)
    batch, side = prior.sampling_batch, ready.resolution
    return count_missing(folder, prior.count, batch, side, ready.ledger)


WORDS = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "vae": "VAE",
}


def _parameter_lines(config: Config, ready: Prepared) -> list[str]:
    lines = []
    for word, counts in zip(("trained", "frozen"), _parameters(config, ready), strict=True):
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        lines.append(f"{word:<14}{sum(counts.values()):,} parameters: {shown}")
    if ready.base.bits:
        lines[-1] += f"; linear layers of all but the VAE in {ready.base.bits}"
    return lines


def _parameters(config: Config, ready: Prepared) -> tuple[dict[str, int], dict[str, int]]:
    """How many parameters are trained, and how many are frozen, by what they are of."""
    base, adapters = ready.base, ready.adapters
    networks = {**base.networks, "vae": base.vae}
    counts = {name: count_parameters([network]) for name, network in networks.items()}
    if config.adapter:
        own = {name: count_parameters([adapter]) for name, adapter in adapters.items()}
        frozen = {WORDS[name]: counts[name] - own.get(name, 0) for name in counts}
        return {f"{config.adapter.kind} in {WORDS[name]}": own[name] for name in own}, frozen
    names = base.networks if config.model.train_text_encoder else ["unet"]
    trained = {WORDS[name]: counts[name] for name in names}
    frozen = {WORDS[name]: counts[name] for name in counts if name not in names}
    if "text_encoder" in names and (unread := count_unread(base)):
        trained[WORDS["text_encoder"]] -= unread
        frozen = {"layers that are never read": unread, **frozen}
    return trained, frozen


def _trained_and_frozen(config: Config, ready: Prepared) -> tuple[int, int]:
    trained, frozen = _parameters(config, ready)
    return sum(trained.values()), sum(frozen.values())


def disk_bytes(config: Config, ready: Prepared) -> int:
    """Disk that the run will take: snapshots, two resume states and a third while it is written,
    class images to make (PNGs of half their pixels' size) and cached latents of all pictures."""
    trained, _ = _trained_and_frozen(config, ready)
    snapshots = -(-config.training.steps // config.snapshots.every)
    snapshots = min(snapshots, config.snapshots.keep or snapshots)
    pixels = 3 * ready.resolution**2
    pictures = missing_class_images(config, ready) * pixels // 2
    pictures += sum(pictures_to_measure(config, ready)) * pixels // 2
    variants = (config.data.crops if config.data.crop == "random" else 1) * (1 + config.data.mirror)
    latent = 8 * ready.base.latent_channels * (ready.resolution // ready.base.latent_factor) ** 2
    subjects = sum(len(subject.pictures) for subject in ready.subjects)
    cached = class_image_count(config, ready) + subjects
    cache = cached * variants * latent if config.data.cache else 0
    weights = 2 if config.training.weights == "bf16" else 4
    weights += 4 if config.ema.schedule != "none" else 0  # their averages
    state = (weights + optimizer_bytes(config.training.optimizer)) * trained
    return snapshots * weights * trained + 3 * state + pictures + cache
