"""What is looked at before anything is made: pictures, base, sizes, samplers, packages."""

import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ldm.config import Config, Prior
from ldm.data.images import check_pictures, find_pictures
from ldm.data.ledger import Ledger, digest_of
from ldm.data.masks import mask_beside
from ldm.data.prompts import fill_all
from ldm.errors import UserError
from ldm.evaluation.gates import margins_for
from ldm.evaluation.measured import SPACES
from ldm.models.adapters import Adapter
from ldm.models.base import BaseModel, check_resolution, frozen_copy
from ldm.models.quantised import quantise
from ldm.models.text import describe_identifier
from ldm.models.vae import load_tiny_vae
from ldm.run.adapters import adapters_of
from ldm.run.device import kind_of_device, precision_of
from ldm.run.folder import check_writable
from ldm.run.measure.instruments import Instruments, load_instruments, questions_of
from ldm.run.memory.heap import return_large_blocks
from ldm.run.settings import as_trained
from ldm.run.subjects import SubjectInputs, find_inputs, identifiers_of
from ldm.run.trained import base_dtype, frozen_bits, load_untouched
from ldm.sampling.samplers import check_steps, make_sampler
from ldm.training.optim import PACKAGES

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

log = logging.getLogger(__name__)
MANY = 10**8  # parameters: with fewer, mapping blocks afresh takes longer than what they are for
HELDOUT = "heldout"  # subfolder of the subject's pictures that training never sees


@dataclass
class Prepared:
    """The inputs of a run, checked."""

    base: BaseModel
    subjects: list[SubjectInputs]
    own_class_pictures: list[Path]  # of prior.folder; else empty
    resolution: int
    heldout: list[Path]  # what evaluation compares with; empty: the pictures trained on
    frozen: BaseModel | None = None  # a copy that training does not touch, where one is needed
    instruments: Instruments = field(default_factory=Instruments)  # what measures
    adapters: dict[str, Adapter] = field(default_factory=dict)  # in the base's networks, by name
    tiny_vae: "AutoencoderTiny | None" = None  # what decodes sample grids in the VAE's place
    ledger: Ledger = field(default_factory=Ledger)  # of the picture files

    @property
    def pictures(self) -> list[Path]:
        """Those of the first subject, which the numbers at the end are about."""
        return self.subjects[0].pictures

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a snapshot of the run is loaded into."""
        return {**self.base.networks, **self.adapters}

    @property
    def digests(self) -> dict[str, str]:
        """Name -> sha256 of each picture; of further subjects with the identifier before it."""
        first, *others = self.subjects
        found = {picture.name: digest_of(picture) for picture in first.pictures}
        for subject in others:
            for picture in subject.pictures:
                found[f"{subject.identifier}/{picture.name}"] = digest_of(picture)
        return found


def prepare(config: Config, to_train: bool = True) -> Prepared:
    """Check every input, the cheap ones first. UserError for the first kind that is wrong.

    to_train: False leaves out what only training needs.
    """
    if to_train:
        _check_packages(config)
        _check_folders(config)
    prior = config.prior if to_train else None
    subjects = list(find_inputs(config))
    own = find_pictures(Path(prior.folder)) if prior and prior.folder else []
    heldout = _heldout_pictures(config) if config.evaluation else []
    instruments = _instruments(config)
    pictures = [picture for subject in subjects for picture in subject.pictures]
    ledger = Ledger(Path(config.data.cache) if config.data.cache else None)
    check_pictures([*pictures, *own, *heldout], ledger.size)
    for template in (*config.samples.prompts, config.sampling.negative):
        fill_all(template, identifiers_of(config))  # each subject that is named is there
    base = _load_quietly(config)
    if sum(p.numel() for net in base.networks.values() for p in net.parameters()) > MANY:
        return_large_blocks()
    resolution = config.data.resolution or base.default_resolution
    check_resolution(base, resolution)
    _check_sampling(config, prior, base)
    for subject in subjects:
        if warning := describe_identifier(base.tokenizer, subject.identifier):
            log.warning("%s", warning)
    _tell_of_unused_masks(config, pictures)
    tiny = config.samples.vae if to_train else None
    tiny_vae = load_tiny_vae(tiny, base.vae) if tiny else None
    frozen = frozen_of(config, base) if to_train else None
    adapters = adapters_of(config, base)  # the copy stays without
    return Prepared(
        base, subjects, own, resolution, heldout, frozen, instruments, adapters, tiny_vae, ledger
    )


def frozen_of(config: Config, base: BaseModel) -> BaseModel | None:
    """A copy of the untouched base, where one is needed; what is not trained is shared with it.

    Nothing is where a thread draws with the copy.
    """
    prior = config.prior
    if prior is None or not needs_frozen_copy(config):
        return None
    return frozen_copy(base, () if prior.images == "live" else untrained(config))


def untrained(config: Config) -> list[str]:
    """The networks that no step of training changes."""
    model = config.model
    trained = model.train_text_encoder or config.training.pivotal > 0
    return ["vae"] if trained else ["vae", "text_encoder", "text_encoder_2"]


def _tell_of_unused_masks(config: Config, pictures: list[Path]) -> None:
    masks = [mask.name for picture in pictures if (mask := mask_beside(picture))]
    if masks and config.objective.mask_outside is None:
        log.info("not used: %s; objective.mask_outside=0.1 would", ", ".join(masks))


def needs_frozen_copy(config: Config) -> bool:
    """Whether the untouched base is used while its copy is trained.

    What adapters are trained in is untouched without them; but not for another thread.
    """
    prior = config.prior
    if prior is None:
        return False
    return prior.images == "live" or prior.target == "base" and config.adapter is None


def _instruments(config: Config) -> Instruments:
    """What `evaluation` measures with; what it asks and allows is checked as well."""
    if config.evaluation is None:
        return Instruments()
    margins_for(SPACES[0], config.evaluation.margins)
    instruments = load_instruments(config.evaluation)
    questions_of(config, instruments.oracle)
    return instruments


def _heldout_pictures(config: Config) -> list[Path]:
    """Pictures of the subject in `heldout/` beside those trained on, where there is that folder."""
    folder = Path(config.subject.pictures) / HELDOUT
    if folder.is_dir():
        return find_pictures(folder)
    log.info("no %s: similarity will be to the pictures trained on, which flatters", folder)
    return []


def _check_sampling(config: Config, prior: Prior | None, base: BaseModel) -> None:
    """UserError for a sampler or a number of steps that the base's noise schedule cannot have."""
    check_steps(config.sampling.steps, base.scheduler, "sampling.steps")
    make_sampler(config.sampling.sampler, as_trained(config, base).scheduler, "sampling.sampler")
    if prior and not prior.folder and prior.images != "subject":
        check_steps(prior.steps, base.scheduler, "prior.steps")
        make_sampler(prior.sampler, base.scheduler, "prior.sampler")
    if config.evaluation and config.evaluation.steps:
        check_steps(config.evaluation.steps, base.scheduler, "evaluation.steps")


def _load_quietly(config: Config) -> BaseModel:
    """Load the base as training has it; the libraries' hints about casting do not apply here."""
    import diffusers.utils.logging

    diffusers.utils.logging.set_verbosity_error()
    base = load_untouched(config, base_dtype(config))
    if bits := frozen_bits(config):
        quantise(base, bits)
    return base


def _check_folders(config: Config) -> None:
    check_writable(Path(config.logs), "logs")
    if config.data.cache:
        check_writable(Path(config.data.cache), "data.cache")
    if config.prior and not config.prior.folder and config.prior.images == "cached":
        check_writable(Path(config.prior.root), "prior.root")
    if config.evaluation:
        check_writable(Path(config.evaluation.root), "evaluation.root")


def _check_packages(config: Config) -> None:
    if config.logger.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            "logger.wandb=true needs the package wandb: "
            "pip install -c constraints.txt -e '.[wandb]', or leave it false"
        )
    if frozen_bits(config) == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "adapter.frozen=nf4 needs the package bitsandbytes: "
            "pip install -c constraints.txt -e '.[quant]', or take int8"
        )
    _check_device(config)
    package = PACKAGES.get(config.training.optimizer)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"training.optimizer={config.training.optimizer} needs the package {package}: "
            "pip install -c constraints.txt -e '.[optim]', or take another optimizer"
        )


def _check_device(config: Config) -> None:
    """What this run's device cannot do."""
    training, kind = config.training, kind_of_device(config)
    if training.optimizer == "paged_adamw_8bit" and kind != "cuda":
        raise UserError(
            f"training.optimizer=paged_adamw_8bit: only CUDA pages memory out, and this run is on "
            f"{kind}; take adamw_8bit, or adafactor"
        )
    if training.fused_backward and precision_of(config) == "16-mixed":
        raise UserError(
            f"training.fused_backward=true: training.precision={training.precision} is 16-mixed on "
            "this device, which needs all gradients to find its scale; set bf16-mixed or fp32"
        )
