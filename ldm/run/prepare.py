"""What is looked at before anything is made: pictures, base, sizes, packages."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from ldm.config import Config
from ldm.data.images import check_pictures, find_pictures
from ldm.data.latents import digest_of
from ldm.data.prompts import fill, prompts_of
from ldm.errors import UserError
from ldm.models.base import BaseModel, check_resolution, load_base
from ldm.models.text import describe_identifier
from ldm.run.folder import check_writable

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """The inputs of a run, checked."""

    base: BaseModel
    pictures: list[Path]
    prompts: list[list[str]]  # per picture, those to draw from
    own_class_pictures: list[Path]  # of prior.folder; else empty
    resolution: int

    @property
    def digests(self) -> dict[str, str]:
        """Name -> sha256 of each picture."""
        return {picture.name: digest_of(picture) for picture in self.pictures}


def prepare(config: Config) -> Prepared:
    """Check every input, the cheap ones first. UserError for the first kind that is wrong."""
    _check_packages(config)
    _check_folders(config)
    subject, prior = config.subject, config.prior
    pictures = find_pictures(Path(subject.pictures).expanduser())
    own = find_pictures(Path(prior.folder).expanduser()) if prior and prior.folder else []
    check_pictures([*pictures, *own])
    prompts = prompts_of(pictures, subject.prompt, subject.identifier, subject.captions)
    base = _load_quietly(config)
    resolution = config.data.resolution or base.default_resolution
    check_resolution(base, resolution)
    if warning := describe_identifier(base.tokenizer, subject.identifier):
        log.warning("%s", warning)
    return Prepared(base, pictures, prompts, own, resolution)


def _load_quietly(config: Config) -> BaseModel:
    """Load the base; the libraries' hints about casting and image processors do not apply here."""
    import diffusers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    model = config.model
    return load_base(model.base, revision=model.revision, variant=model.variant)


def _check_folders(config: Config) -> None:
    check_writable(Path(config.logs).expanduser(), "logs")
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
    oracle = config.evaluation and config.evaluation.oracle
    if oracle:
        module = oracle.partition(":")[0]
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        if found is None:
            raise UserError(
                f"evaluation.oracle={oracle}: there is no module {module}; set it to "
                "package.module:Name, or evaluation=null"
            )


def filled(config: Config, templates: list[str]) -> list[str]:
    """Prompts with the identifier in the place of [V]."""
    return [fill(template, config.subject.identifier) for template in templates]
