"""What a run would do, said before it does it: `--dry-run`."""

import shutil
from pathlib import Path

from ldm.config import Config
from ldm.models.base import BaseModel
from ldm.models.text import tokens_of
from ldm.models.trainable import count_parameters
from ldm.run.folder import existing_parent
from ldm.run.memory import GIB, MIB, training_bytes, unet_activations
from ldm.run.prepare import Prepared
from ldm.run.settings import filled
from ldm.sampling.prior import class_image_folder, class_image_settings, count_missing


def plan_lines(config: Config, ready: Prepared, run: Path) -> list[str]:
    """The plan of a run, a line each; nothing is made."""
    base, training = ready.base, config.training
    epochs = training.steps * training.batch / len(ready.pictures)
    lines = [
        f"run folder    {run}",
        f"base          {base.source}, fingerprint {base.fingerprint[:12]}, "
        f"{base.prediction_type}, {ready.resolution} pixels",
        f"pictures      {len(ready.pictures)} in {config.subject.pictures}: "
        + ", ".join(picture.name for picture in ready.pictures),
        *_prompt_lines(config, ready),
        f"steps         {training.steps} of {training.batch} pictures"
        + (f" + {config.prior.batch} class images" if config.prior else "")
        + (f", in {training.accumulate} passes each" if training.accumulate > 1 else ""),
        f"epochs        {epochs:.1f} (each picture is seen {epochs:.0f} times)",
        f"class images  {_class_images(config, ready)}",
        *_parameter_lines(config, base),
    ]
    disk, memory = disk_bytes(config, ready), memory_bytes(config, ready)
    free = shutil.disk_usage(existing_parent(run)).free
    short = "; NOT ENOUGH: keep fewer snapshots, or set logs=" if disk > free else ""
    lines.append(f"disk          about {disk / MIB:.0f} MiB of {free / MIB:.0f} free{short}")
    lines.append(
        f"memory        about {memory / GIB:.1f} GiB per process while training (estimate)"
    )
    return lines


def _prompt_lines(config: Config, ready: Prepared) -> list[str]:
    prompts = [prompt for several in ready.prompts for prompt in several]
    if config.prior:
        prompts.append(config.prior.prompt)
    prompts += filled(config, config.samples.prompts if config.samples.every else [])
    tokenizer = ready.base.tokenizer
    most = tokenizer.model_max_length - 2  # start and end
    lines = []
    for prompt in dict.fromkeys(prompts):
        tokens = tokens_of(tokenizer, prompt)
        over = f", {len(tokens) - most} too many: cut" if len(tokens) > most else ""
        shown = " ".join(token.replace("</w>", "_") for token in tokens)
        lines.append(f"prompt        {prompt!r} -> {shown} ({len(tokens)} tokens{over})")
    return lines


def _class_images(config: Config, ready: Prepared) -> str:
    prior = config.prior
    if prior is None:
        return "none (prior: null)"
    if prior.folder:
        return f"{len(ready.own_class_pictures)} of your own in {prior.folder}, none to make"
    folder, missing = prior_folder(config, ready), missing_class_images(config, ready)
    return f"{prior.count} in {folder}, {missing} to make"


def prior_folder(config: Config, ready: Prepared) -> Path:
    """Where the class images of this base, prompt and sampler settings lie."""
    prior = config.prior
    assert prior is not None
    settings = class_image_settings(
        prior.seed, prior.scale, prior.steps, prior.sampler, ready.resolution
    )
    return class_image_folder(prior.root, ready.base.fingerprint, prior.prompt, settings)


def class_image_count(config: Config, ready: Prepared) -> int:
    """How many class images training will use: your own, or as many made ones as are asked for."""
    if config.prior is None:
        return 0
    return len(ready.own_class_pictures) if config.prior.folder else config.prior.count


def missing_class_images(config: Config, ready: Prepared) -> int:
    """How many class images have to be made."""
    prior = config.prior
    if prior is None or prior.folder:
        return 0
    folder = prior_folder(config, ready)
    return count_missing(folder, prior.count, prior.sampling_batch, ready.resolution)


def _parameter_lines(config: Config, base: BaseModel) -> list[str]:
    parts = {"UNet": base.unet, "text encoder": base.text_encoder, "VAE": base.vae}
    counts = {name: count_parameters([part]) for name, part in parts.items()}
    trained = ["UNet", "text encoder"] if config.model.train_text_encoder else ["UNet"]
    lines = []
    for word, names in (("trained", trained), ("frozen", [n for n in parts if n not in trained])):
        shown = ", ".join(f"{name} {counts[name]:,}" for name in names)
        lines.append(f"{word:<14}{sum(counts[name] for name in names):,} parameters: {shown}")
    return lines


def _trained_and_frozen(config: Config, base: BaseModel) -> tuple[int, int]:
    text = count_parameters([base.text_encoder])
    trained = count_parameters([base.unet]) + (text if config.model.train_text_encoder else 0)
    return trained, count_parameters([base.vae, base.unet, base.text_encoder]) - trained


def disk_bytes(config: Config, ready: Prepared) -> int:
    """Disk that the run will take: snapshots, two resume states and a third while it is written,
    class images to make (PNGs of half their pixels' size) and cached latents of all pictures."""
    trained, _ = _trained_and_frozen(config, ready.base)
    snapshots = -(-config.training.steps // config.snapshots.every)
    snapshots = min(snapshots, config.snapshots.keep or snapshots)
    pixels = 3 * ready.resolution**2
    pictures = missing_class_images(config, ready) * pixels // 2
    variants = (config.data.crops if config.data.crop == "random" else 1) * (1 + config.data.mirror)
    latent = 8 * ready.base.latent_channels * (ready.resolution // ready.base.latent_factor) ** 2
    cached = class_image_count(config, ready) + len(ready.pictures)
    cache = cached * variants * latent if config.data.cache else 0
    return snapshots * 4 * trained + 3 * 12 * trained + pictures + cache


def memory_bytes(config: Config, ready: Prepared) -> int:
    """Memory of a training step in one process (if there is one process)."""
    trained, frozen = _trained_and_frozen(config, ready.base)
    samples = config.training.batch + (config.prior.batch if config.prior else 0)
    activations = unet_activations(
        ready.base.unet,
        ready.resolution,
        ready.base.latent_factor,
        ready.base.tokenizer.model_max_length,
    ).elements(config.model.gradient_checkpointing)
    kept = activations * samples // config.training.accumulate
    return training_bytes(trained, frozen, kept, config.training.precision)
