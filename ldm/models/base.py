"""The base model: Stable Diffusion or SDXL in the diffusers folder layout, loaded strictly."""

import copy
import logging
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.choices import OWN, Choices, with_choices
from ldm.models.files.keys import Kind, kind_of
from ldm.models.files.single_file import read_single_file
from ldm.models.fit import check_fit
from ldm.models.folder import PARTS, SDXL_PARTS, check_parts, find_folder, fingerprint
from ldm.models.kind import is_sdxl, zeroes_empty_prompt
from ldm.models.layout import lay_out
from ldm.models.text import USUAL, Reading, TextEncoders
from ldm.models.vae import fingerprint_of_vae
from ldm.models.weights import load_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from ldm.models.quantised import Bits

log = logging.getLogger(__name__)


@dataclass
class BaseModel:
    """The parts of a Stable Diffusion or SDXL, where they came from and what they are.

    `fingerprint` is a sha256 over every file that was loaded, `vae_fingerprint` over the VAE's
    only (latents depend on nothing else). SDXL has a second tokenizer and text encoder;
    zero_empty_prompt: see `TextEncoders`; reading: how prompts are read; bits: of linear layers,
    where `quantise` has put them into few.
    """

    tokenizer: "CLIPTokenizer"
    text_encoder: "CLIPTextModel"
    vae: "AutoencoderKL"
    unet: "UNet2DConditionModel"
    scheduler: "SchedulerMixin"
    source: str
    fingerprint: str
    vae_fingerprint: str
    tokenizer_2: "CLIPTokenizer | None" = None
    text_encoder_2: "CLIPTextModelWithProjection | None" = None
    zero_empty_prompt: bool = False
    reading: Reading = USUAL
    bits: "Bits | None" = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What can be trained, by its name in folders and snapshots: all networks but the VAE."""
        networks: dict[str, nn.Module] = {"unet": self.unet, "text_encoder": self.text_encoder}
        if self.text_encoder_2 is not None:
            networks["text_encoder_2"] = self.text_encoder_2
        return networks

    @property
    def kind(self) -> Kind:
        """Stable Diffusion 1.x, 2.x or XL, as its text encoders tell."""
        return kind_of(self.networks)

    @property
    def text(self) -> TextEncoders:
        """What turns prompts into embeddings; it shares the networks."""
        if self.tokenizer_2 is None:
            return TextEncoders((self.tokenizer,), (self.text_encoder,), reading=self.reading)
        return TextEncoders(
            (self.tokenizer, self.tokenizer_2),
            (self.text_encoder, self.text_encoder_2),
            self.zero_empty_prompt,
            self.reading,
        )

    def with_own_tokenizers(self) -> Self:
        """The same networks; copies of the tokenizers, each of which serves one thread only."""
        first, second = copy.deepcopy((self.tokenizer, self.tokenizer_2))
        return replace(self, tokenizer=first, tokenizer_2=second)

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
        """Where the UNet computes: where it lies, unless it is moved there for each call."""
        hook = getattr(self.unet, "_hf_hook", None)  # accelerate's
        return self.unet.device if hook is None else torch.device(hook.execution_device)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move every part to `device`; text encoders and UNet also to `dtype` if given.

        The VAE stays float32: it is a small part of the work, and in half precision it bands
        (bfloat16) or overflows (float16).
        """
        for part in self.networks.values():
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

    VAE and UNet lie in memory channels last (`lay_out`).
    `dtype` is that of text encoders and UNet; the VAE is float32 (see `BaseModel.to`). UserError:
    the folder or hub id cannot be had, a part is missing or damaged, weights and configuration do
    not fit each other exactly, or the model is neither a Stable Diffusion 1.x or 2.x nor SDXL.
    `choices`: what is taken in place of the model's own.
    """
    _quiet()
    if Path(source).expanduser().is_file():
        return with_choices(_from_single_file(source, dtype, choices), choices)
    choices.check_for_folder(source)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = find_folder(source, revision, variant)
    sdxl = is_sdxl(folder)
    parts = SDXL_PARTS if sdxl else PARTS
    check_parts(folder, parts, variant)
    vae = load_weights(AutoencoderKL, folder / "vae", variant, torch_dtype=torch.float32)
    unet = load_weights(UNet2DConditionModel, folder / "unet", variant, torch_dtype=dtype)
    text_encoder = load_weights(CLIPTextModel, folder / "text_encoder", variant, dtype=dtype)
    lay_out(vae, unet)
    base = BaseModel(
        tokenizer=_load_tokenizer(folder / "tokenizer", text_encoder),
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=_load_scheduler(folder),
        source=str(source),
        fingerprint=fingerprint(folder, parts, variant),
        vae_fingerprint=fingerprint(folder, ("vae",), variant),
    )
    if sdxl:
        _add_second_encoder(base, folder, dtype, variant)
    check_fit(base, folder)
    return with_choices(base, choices)


def _from_single_file(source: str | Path, dtype: torch.dtype, choices: Choices) -> BaseModel:
    read = read_single_file(source, dtype, choices.tokenizer, choices.prediction_type, choices.ema)
    lay_out(read.parts["vae"], read.parts["unet"])
    base = BaseModel(
        **read.parts,
        scheduler=read.scheduler,
        source=str(source),
        fingerprint=read.fingerprint,
        vae_fingerprint=fingerprint_of_vae(read.parts["vae"]),
        zero_empty_prompt=read.zero_empty_prompt,
    )
    check_fit(base, Path(source))
    return base


def _add_second_encoder(
    base: BaseModel, folder: Path, dtype: torch.dtype, variant: str | None
) -> None:
    """Give the base what SDXL has beside Stable Diffusion."""
    from transformers import CLIPTextModelWithProjection

    part = folder / "text_encoder_2"
    base.text_encoder_2 = load_weights(CLIPTextModelWithProjection, part, variant, dtype=dtype)
    base.tokenizer_2 = _load_tokenizer(folder / "tokenizer_2", base.text_encoder_2)
    base.zero_empty_prompt = zeroes_empty_prompt(folder)


def frozen_copy(base: BaseModel, shared: Container[str] = ()) -> BaseModel:
    """Return a copy of all parts but `shared` ("vae", "text_encoder", ...), in eval mode without
    gradients.

    To be taken before training changes `base`: exactly what is in memory is copied, for the files
    on disk may be others by now. Another thread may use what is not shared, its tokenizers too (one
    that two threads use at once fails with "Already borrowed").
    """
    parts = {**base.networks, "vae": base.vae}
    made = copy.deepcopy(base, {id(parts[name]): parts[name] for name in parts if name in shared})
    for name, part in {**made.networks, "vae": made.vae}.items():
        if name not in shared:
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


def _load_tokenizer(folder: Path, text_encoder: Any) -> "CLIPTokenizer":
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(f"base model part {folder}: {error}") from error
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
