"""Another VAE in a base's place: a folder, a hub id, a single file, or a file of the VAE alone.

And a tiny one, for pictures to look at while training.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldm.errors import UserError
from ldm.models.files.architectures import known_configs
from ldm.models.files.keys import VAE, places_of
from ldm.models.files.networks import empty_network, fill_network, wrong_shapes
from ldm.models.files.recognise import FIRST, recognise, unexpected
from ldm.models.files.single_file import own_configs
from ldm.models.files.weights_file import WeightsFile, open_weights
from ldm.models.folder import find_vae_folder
from ldm.models.weights import load_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

log = logging.getLogger(__name__)
KEY, TINY_KEY = "model.vae", "samples.vae"


def load_vae(source: str | Path, like: "AutoencoderKL") -> "AutoencoderKL":
    """Load a VAE, float32, in eval mode, to be used in the place of `like`.

    A file may be a whole checkpoint, or a VAE alone, which has the configuration of `like`.
    UserError: it cannot be had, is damaged, or its latents are not those that the UNet was trained
    on.
    """
    from diffusers import AutoencoderKL

    path = Path(source).expanduser()
    if path.is_file():
        vae = _from_file(open_weights(path), like)
    else:
        folder = find_vae_folder(source, KEY)
        vae = load_weights(AutoencoderKL, folder, what=KEY, torch_dtype=torch.float32)
    _check_fit(vae, like, source)
    log.info("%s=%s takes the place of the base's VAE", KEY, source)
    return vae


def load_tiny_vae(source: str | Path, like: "AutoencoderKL") -> "AutoencoderTiny":
    """Load an AutoencoderTiny, float32, in eval mode, that decodes the latents of `like`.

    It wants latents as the UNet has them: its scaling factor is 1. A folder or a hub id; TAESD:
    https://github.com/madebyollin/taesd. UserError: it cannot be had, is damaged or something else,
    or its latents have other channels or another size.
    """
    from diffusers import AutoencoderTiny

    folder = find_vae_folder(source, TINY_KEY)
    kind = AutoencoderTiny.load_config(folder).get("_class_name")
    if kind != AutoencoderTiny.__name__:
        raise UserError(
            f"{TINY_KEY}={source}: is of class {kind}; give an AutoencoderTiny, as "
            "madebyollin/taesd (Stable Diffusion 1.x, 2.x) or madebyollin/taesdxl, or null for the "
            "model's own VAE"
        )
    vae = load_weights(AutoencoderTiny, folder, what=TINY_KEY, torch_dtype=torch.float32)
    # One that enlarges by another factor at each level cannot be told from its levels.
    factor = vae.config.upsampling_scaling_factor ** (len(vae.config.block_out_channels) - 1)
    wanted = {
        "latent_channels": (vae.config.latent_channels, like.config.latent_channels),
        "pixels per latent": (factor, 2 ** (len(like.config.block_out_channels) - 1)),
    }
    _refuse_others(wanted, TINY_KEY, source)
    return vae


def fingerprint_of_vae(vae: "AutoencoderKL") -> str:
    """sha256 (hex) over configuration and weights: latents depend on nothing else."""
    config = {key: value for key, value in vae.config.items() if key[0] != "_"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_file(file: WeightsFile, like: "AutoencoderKL") -> "AutoencoderKL":
    network = empty_network(file.path, "vae", _config_of(file, like))
    places = places_of("sd1", "vae", network.state_dict())  # of every kind they are the same
    names = {place.name: _name_in(file, place.name) for place in places.values()}
    whole = any(name.startswith(VAE) for name in file.shapes)
    own = [name for name in file.shapes if name.startswith(VAE) or not whole]
    problems = [f"lacks {name}" for name in names.values() if name not in file.shapes]
    problems += [f"has {name}" for name in unexpected(own, {*names.values()})]
    problems = problems or [*wrong_shapes(file, {"vae": network}, {"vae": places}, names)]
    if problems:
        raise UserError(
            f"{KEY}={file.path}: not a VAE such as the base's: it {'; it '.join(problems[:3])}"
        )
    return fill_network(network, file, places, names, torch.float32)


def _config_of(file: WeightsFile, like: "AutoencoderKL") -> dict[str, Any]:
    """A file's own where we wrote it, its kind's of a whole checkpoint, else that of `like`."""
    if any(name.startswith("encoder.down_blocks.") for name in file.shapes):
        raise UserError(
            f"{KEY}={file.path}: a VAE with diffusers' names; give the folder that it lies in, "
            "with its config.json"
        )
    if own := own_configs(file):
        return dict(own["parts"]["vae"])
    if FIRST in file.shapes:
        return known_configs(recognise(file.path, file.shapes), "epsilon")["vae"]
    return dict(like.config)


def _name_in(file: WeightsFile, name: str) -> str:
    """Files of a VAE alone leave out what a checkpoint's names begin with."""
    short = name.removeprefix(VAE)
    return short if name not in file.shapes and short in file.shapes else name


def _check_fit(vae: "AutoencoderKL", like: "AutoencoderKL", source: str | Path) -> None:
    """UserError where latents are of another kind: the UNet knows the base's alone."""
    wanted = {
        "latent_channels": (vae.config.latent_channels, like.config.latent_channels),
        "scaling_factor": (vae.config.scaling_factor, like.config.scaling_factor),
        "shift_factor": (vae.config.shift_factor, like.config.shift_factor),
        "levels": (len(vae.config.block_out_channels), len(like.config.block_out_channels)),
    }
    _refuse_others(wanted, KEY, source)


def _refuse_others(wanted: dict[str, tuple[Any, Any]], key: str, source: str | Path) -> None:
    """UserError for what is not the base's; wanted: of either, by what it is."""
    wrong = [f"{name} {a} (the base's: {b})" for name, (a, b) in wanted.items() if a != b]
    if wrong:
        raise UserError(
            f"{key}={source}: its latents are others than those that the UNet was trained on: "
            f"{', '.join(wrong)}; take a VAE made for this base"
        )
