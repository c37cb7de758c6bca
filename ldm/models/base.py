"""The base model: a Stable Diffusion in the diffusers folder layout, loaded strictly."""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.choices import OWN, Choices, with_choices
from ldm.models.folder import PARTS, check_parts, find_folder, fingerprint
from ldm.models.single_file import read_single_file
from ldm.models.vae import fingerprint_of_vae
from ldm.models.weights import load_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger(__name__)


@dataclass
class BaseModel:
    """The five parts of a Stable Diffusion, where they came from and what they are.

    `fingerprint` is a sha256 over every file that was loaded, `vae_fingerprint` over the VAE's
    only (latents depend on nothing else).
    """

    tokenizer: "CLIPTokenizer"
    text_encoder: "CLIPTextModel"
    vae: "AutoencoderKL"
    unet: "UNet2DConditionModel"
    scheduler: "SchedulerMixin"
    source: str
    fingerprint: str
    vae_fingerprint: str

    @property
    def latent_factor(self) -> int:
        """Pixels per latent along one side (8 in Stable Diffusion 1 and 2)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def multiple(self) -> int:
        """What a picture's sides must be a multiple of: VAE factor x UNet factor."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def default_resolution(self) -> int:
        """Pixels along one side that the UNet was trained for."""
        size = self.unet.config.sample_size
        return int(min(size) if isinstance(size, list | tuple) else size) * self.latent_factor

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move every part to `device`; text encoder and UNet also to `dtype` if given.

        The VAE stays float32: it is a small part of the work, and in half precision it bands
        (bfloat16) or overflows (float16).
        """
        for part in (self.text_encoder, self.unet):
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own warns for nothing
        self.vae.to(device=device)
        return self


def load_base(
    source: str | Path,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    choices: Choices = OWN,
) -> BaseModel:
    """Load a base model from a folder, a hub id or a single file, on the CPU, in eval mode.

    VAE and UNet are laid out in memory channels last, in which convolutions are faster.
    `dtype` is that of text encoder and UNet; the VAE is float32 (see `BaseModel.to`). UserError:
    the folder or hub id cannot be had, a part is missing or damaged, weights and configuration do
    not fit each other exactly, or the model is not a Stable Diffusion 1.x or 2.x. `choices`: what
    is taken in place of the model's own.
    """
    _quiet()
    if Path(source).expanduser().is_file():
        return with_choices(_from_single_file(source, dtype, choices), choices)
    choices.check_for_folder(source)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = find_folder(source, revision, variant)
    _check_kind(folder)
    check_parts(folder, variant)
    vae = load_weights(AutoencoderKL, folder / "vae", variant, torch_dtype=torch.float32)
    unet = load_weights(UNet2DConditionModel, folder / "unet", variant, torch_dtype=dtype)
    text_encoder = load_weights(CLIPTextModel, folder / "text_encoder", variant, dtype=dtype)
    for part in (vae, unet):
        nn.Module.to(part, memory_format=torch.channels_last)  # type: ignore[call-overload]
    base = BaseModel(
        tokenizer=_load_tokenizer(folder, text_encoder),
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=_load_scheduler(folder),
        source=str(source),
        fingerprint=fingerprint(folder, PARTS, variant),
        vae_fingerprint=fingerprint(folder, ("vae",), variant),
    )
    _check_fit(base, folder)
    return with_choices(base, choices)


def _from_single_file(source: str | Path, dtype: torch.dtype, choices: Choices) -> BaseModel:
    read = read_single_file(source, dtype, choices.tokenizer, choices.prediction_type, choices.ema)
    if read.kind == "sdxl":
        raise UserError(f"model {source}: Stable Diffusion XL, and no such base is supported")
    for part in ("vae", "unet"):
        read.parts[part].to(memory_format=torch.channels_last)
    base = BaseModel(
        **read.parts,
        scheduler=read.scheduler,
        source=str(source),
        fingerprint=read.fingerprint,
        vae_fingerprint=fingerprint_of_vae(read.parts["vae"]),
    )
    _check_fit(base, Path(source))
    return base


def frozen_copy(base: BaseModel) -> BaseModel:
    """Return a copy of all five parts, in eval mode without gradients, that shares nothing.

    To be taken before training changes `base`: exactly what is in memory is copied, for the files
    on disk may be others by now. Another thread may use it, its tokenizer too (one that two
    threads use at once fails with "Already borrowed").
    """
    made = copy.deepcopy(base)
    for part in (made.text_encoder, made.unet, made.vae):
        part.requires_grad_(False).eval()
    return made


def check_resolution(base: BaseModel, resolution: int, key: str = "data.resolution") -> None:
    """Raise UserError, naming `key`, unless VAE and UNet can work at this many pixels a side."""
    multiple = base.multiple
    if resolution > 0 and resolution % multiple == 0:
        return
    below = max(multiple, resolution // multiple * multiple)
    near = sorted({below, below + multiple}) if resolution > 0 else [base.default_resolution]
    raise UserError(
        f"{key}: {resolution} is not a multiple of {multiple}, which {base.source} needs; "
        f"use {' or '.join(map(str, near))}"
    )


def _quiet() -> None:
    """Switch off the libraries' own progress bars, and hints at what is not used here."""
    # diffusers imports it where it is installed; it then asks for kernels of 4-bit inference.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _check_kind(folder: Path) -> None:
    """Refuse what looks like a folder of another kind of model, by its second text encoder."""
    if (folder / "text_encoder_2").is_dir() or (folder / "transformer").is_dir():
        raise UserError(
            f"base model {folder}: not a Stable Diffusion 1.x or 2.x (one text encoder and a "
            "UNet), and no other kind is supported"
        )
    if not any((folder / part).is_dir() for part in PARTS):
        raise UserError(
            f"base model {folder}: not a diffusers folder (it has none of {', '.join(PARTS)})"
        )


def _load_tokenizer(folder: Path, text_encoder: "CLIPTextModel") -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(f"base model part {folder / 'tokenizer'}: {error}") from error
    longest = text_encoder.config.max_position_embeddings
    if tokenizer.model_max_length > longest:  # e.g. no tokenizer_config.json: 1e30
        tokenizer.model_max_length = longest
    return tokenizer


def _load_scheduler(folder: Path) -> Any:
    """Load the scheduler of the class that its configuration names."""
    import diffusers

    path = folder / "scheduler"
    try:
        config = diffusers.DDIMScheduler.load_config(path, local_files_only=True)
        return getattr(diffusers, config["_class_name"]).from_config(config)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(
            f"base model part {path} cannot be read ({type(error).__name__}: {error})"
        ) from error


def _check_fit(base: BaseModel, folder: Path) -> None:
    """Raise UserError where the parts cannot belong to one another."""
    unet, text = base.unet.config, base.text_encoder.config
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"base model {folder}: the UNet reads text of width {unet.cross_attention_dim}, "
            f"the text encoder writes {text.hidden_size}"
        )
    if unet.in_channels != base.latent_channels:
        raise UserError(
            f"base model {folder}: the UNet takes {unet.in_channels} channels and the VAE gives "
            f"{base.latent_channels}; inpainting and depth models are not supported"
        )
    if len(base.tokenizer) > text.vocab_size:
        raise UserError(
            f"base model {folder}: the tokenizer has {len(base.tokenizer)} tokens, the text "
            f"encoder {text.vocab_size}"
        )
    if base.prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"base model {folder}: scheduler prediction_type {base.prediction_type!r} is not "
            "supported; epsilon and v_prediction are"
        )
