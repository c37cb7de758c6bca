"""Sample grids decoded by an AutoencoderTiny."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.config import Config, load_config
from ldm.data.images import to_picture
from ldm.errors import UserError
from ldm.run.build import grid_drawer
from ldm.run.prepare import prepare
from ldm.run.settings import grid_settings
from ldm.sampling.denoiser import Guidance
from ldm.sampling.generate import denoise, initial_noise
from ldm.sampling.grid import labelled_grid
from ldm.sampling.samplers import make_sampler
from tests.conftest import edit_json
from tests.workspace import MAIN_JOB, Workspace


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    from diffusers import AutoencoderTiny

    place = Workspace(tmp_path, tiny_base_folder("eps"))
    place.settings |= {"samples.every": 1, "samples.count": 1, "samples.prompts": "[a dog]"}
    place.settings |= {"samples.vae": tmp_path / "tiny"}
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(tmp_path / "tiny")
    return place


def configured(place: Workspace) -> Config:
    return load_config([MAIN_JOB], place.words()[2:])


@torch.no_grad()
def test_grids_are_decoded_by_it_from_latents_as_the_unet_has_them(place: Workspace) -> None:
    config = configured(place)
    ready = prepare(config)
    base, tiny = ready.base, ready.tiny_vae
    assert tiny is not None and base.vae.config.scaling_factor != 1
    text = base.text.encode(["a dog", ""], "cpu")
    solver = make_sampler("dpmpp_2m", base.scheduler)
    noise = initial_noise([0], (4, 8, 8))
    clean = denoise(base, solver, 2, noise, text[:1], text[1:], [torch.Generator()], Guidance(5.0))
    wanted = labelled_grid([[to_picture(tiny.decode(clean).sample[0])]], ["a dog"])
    drawn = grid_drawer(config, ready)(torch.device("cpu"))
    assert drawn.tobytes() == wanted.tobytes() and len(wanted.getcolors(10**6) or []) > 50
    told = grid_settings(config, base, ready.resolution, place.logs)
    assert told["vae"] == str(place.folder / "tiny")
    assert prepare(config, to_train=False).tiny_vae is None  # what is measured has the true one


def test_what_does_not_fit_is_refused(place: Workspace) -> None:
    tiny = place.folder / "tiny"
    place.settings["samples.vae"] = place.base / "vae"
    with pytest.raises(UserError, match=r"samples\.vae=.* is of class AutoencoderKL"):
        prepare(configured(place))
    place.settings["samples.vae"] = tiny
    edit_json(tiny / "config.json", upsampling_scaling_factor=4)
    with pytest.raises(UserError, match=r"samples\.vae=.*pixels per latent 16 \(the base's: 4\)"):
        prepare(configured(place))
    place.settings["samples.every"] = 0
    with pytest.raises(UserError, match=r"samples\.vae=.*samples\.every=0"):
        configured(place)
