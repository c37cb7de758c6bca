"""What is looked at before anything is made: pictures, base, sizes, samplers, packages."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import Config, instantiate
from ldm.data.images import check_pictures, find_pictures
from ldm.data.latents import digest_of
from ldm.data.prompts import prompts_of
from ldm.errors import UserError
from ldm.models.base import BaseModel, check_resolution, load_base
from ldm.models.text import describe_identifier
from ldm.run.folder import check_writable
from ldm.sampling.samplers import check_steps, make_sampler

log = logging.getLogger(__name__)
HELDOUT = "heldout"  # subfolder of the subject's pictures that training never sees


@dataclass
class Prepared:
    """The inputs of a run, checked."""

    base: BaseModel
    pictures: list[Path]
    prompts: list[list[str]]  # per picture, those to draw from
    own_class_pictures: list[Path]  # of prior.folder; else empty
    resolution: int
    oracle: Any  # what measures at the end; None: nothing does
    heldout: list[Path]  # what it compares with; empty: the pictures trained on

    @property
    def digests(self) -> dict[str, str]:
        """Name -> sha256 of each picture."""
        return {picture.name: digest_of(picture) for picture in self.pictures}


def prepare(config: Config) -> Prepared:
    """Check every input, the cheap ones first. UserError for the first kind that is wrong."""
    _check_packages(config)
    _check_folders(config)
    subject, prior = config.subject, config.prior
    pictures = find_pictures(Path(subject.pictures))
    own = find_pictures(Path(prior.folder)) if prior and prior.folder else []
    oracle = _make_oracle(config)
    heldout = _heldout_pictures(config) if oracle is not None else []
    check_pictures([*pictures, *own, *heldout])
    prompts = prompts_of(pictures, subject.prompt, subject.identifier, subject.captions)
    base = _load_quietly(config)
    resolution = config.data.resolution or base.default_resolution
    check_resolution(base, resolution)
    _check_sampling(config, base)
    if warning := describe_identifier(base.tokenizer, subject.identifier):
        log.warning("%s", warning)
    return Prepared(base, pictures, prompts, own, resolution, oracle, heldout)


def _make_oracle(config: Config) -> Any:
    """What `evaluation.oracle` names; None where nothing is measured."""
    dotted = config.evaluation and config.evaluation.oracle
    if not dotted:
        return None
    try:
        return instantiate(dotted)
    except UserError as error:
        raise UserError(
            f"evaluation.oracle={dotted}: {error}; evaluation=null measures nothing"
        ) from error


def _heldout_pictures(config: Config) -> list[Path]:
    """Pictures of the subject in `heldout/` beside those trained on, where there is that folder."""
    folder = Path(config.subject.pictures) / HELDOUT
    if folder.is_dir():
        return find_pictures(folder)
    log.info("no %s: similarity will be to the pictures trained on, which flatters", folder)
    return []


def _check_sampling(config: Config, base: BaseModel) -> None:
    """UserError for a sampler or a number of steps that the base's noise schedule cannot have."""
    check_steps(config.sampling.steps, base.scheduler, "sampling.steps")
    make_sampler(config.sampling.sampler, base.scheduler, "sampling.sampler")
    if (prior := config.prior) and not prior.folder:
        check_steps(prior.steps, base.scheduler, "prior.steps")
        make_sampler(prior.sampler, base.scheduler, "prior.sampler")


def _load_quietly(config: Config) -> BaseModel:
    """Load the base; the libraries' hints about casting and image processors do not apply here."""
    import diffusers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    model = config.model
    return load_base(model.base, revision=model.revision, variant=model.variant)


def _check_folders(config: Config) -> None:
    check_writable(Path(config.logs), "logs")
    if config.data.cache:
        check_writable(Path(config.data.cache), "data.cache")
    if config.prior and not config.prior.folder:
        check_writable(Path(config.prior.root), "prior.root")


def _check_packages(config: Config) -> None:
    if config.logger.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "logger.wandb=true needs the package wandb: "
            "pip install -c constraints.txt -e '.[wandb]', or leave it false"
        )
