"""Posterior moments: right, encoded once, never stale, never fatal."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm.data.images import fit, load_picture
from ldm.data.encoding import encode_pixels
from ldm.data.latents import Latents, Progress, Transform, encode_pictures
from ldm.data.records import Records
from ldm.data.shelf import ENTRY, Moments
from ldm.errors import UserError
from ldm.randomness import generator

SIDE = 16  # pixels; the VAE below makes 8 x 8 latents of them


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[4, 8],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            scaling_factor=0.5,
        ).eval()


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Three pictures: wide, tall, square."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = []
    for n, size in enumerate([(40, 20), (18, 50), (24, 24)]):
        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=generator(n, "test"))
        paths.append(folder / f"{n}.png")
        Image.fromarray(noise.to(torch.uint8).numpy()).save(paths[-1])
    return paths


class Counting:
    """A VAE that counts the squares it encodes."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae, self.squares, self.largest = vae, 0, 0
        self.dtype, self.device, self.config = vae.dtype, vae.device, vae.config

    def encode(self, squares: torch.Tensor):
        self.squares += len(squares)
        self.largest = max(self.largest, len(squares))
        return self.vae.encode(squares)


def encoded(
    vae: Any,
    fingerprint: str,
    pictures: list[Path],
    resolution: int,
    *,
    cache: Path | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    **transform: Any,
) -> "Stacked":
    """`encode_pictures` with the fields of the transform as they come."""
    how = Transform(resolution, **transform)
    return Stacked(
        encode_pictures(
            vae, fingerprint, pictures, how, cache=cache, batch=batch, progress=progress
        )
    )


class Stacked:
    """Latents of one shape."""

    def __init__(self, latents: Latents) -> None:
        self.mean, self.std = torch.stack([*latents.mean]), torch.stack([*latents.std])  # [N, V, C, h, w]
        self.sizes, self.names, self.variants = latents.sizes, latents.names, latents.variants
        assert len(latents) == len(latents.names)


def pictures_in(cache: Path) -> int:
    """How many entries the indexes in a cache folder have."""
    return sum(len(Records(file, ENTRY).read()) for file in cache.glob("*.index"))


def same(one: Stacked, other: Stacked) -> bool:
    pairs = ((one.mean, other.mean), (one.std, other.std), (one.sizes, other.sizes))
    return all(torch.equal(*pair) for pair in pairs)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_moments_are_the_scaled_posterior(vae, pictures):
    latents = encoded(vae, "f", pictures, SIDE)
    assert latents.mean.shape == latents.std.shape == (3, 1, 4, 8, 8)
    assert latents.names == ["0.png", "1.png", "2.png"]
    assert latents.variants == 1
    assert latents.mean.dtype == latents.std.dtype == torch.float32
    for n, path in enumerate(pictures):
        square = fit(load_picture(path), SIDE)[None]
        with torch.no_grad():
            moments = vae.quant_conv(vae.encoder(square))
        mean, logvar = moments.double().chunk(2, dim=1)
        close(latents.mean[n].double(), mean * 0.5)
        close(latents.std[n].double(), logvar.clamp(-30, 20).mul(0.5).exp() * 0.5)


def test_squares_in_memory_are_encoded_as_pictures_are(vae, pictures):
    squares = torch.stack([fit(load_picture(path), SIDE) for path in pictures])
    mean, std = encode_pixels(vae, squares)
    latents = encoded(vae, "f", pictures, SIDE)
    close(mean, latents.mean[:, 0])
    close(std, latents.std[:, 0])
    assert mean.shape == (3, 4, 8, 8) and mean.dtype == std.dtype == torch.float32
    assert not mean.requires_grad and not mean.is_inference()  # the UNet may keep it for backward


def test_shift_factor_is_subtracted_before_scaling(vae, pictures):
    plain = encoded(vae, "f", pictures, SIDE)
    vae.register_to_config(shift_factor=0.25)
    try:
        shifted = encoded(vae, "f", pictures, SIDE)
    finally:
        vae.register_to_config(shift_factor=None)
    close(shifted.mean, plain.mean - 0.25 * 0.5)
    close(shifted.std, plain.std)


def test_latents_can_be_trained_on(vae, pictures):
    latents = encoded(vae, "f", pictures, SIDE)
    assert not latents.mean.requires_grad and not latents.mean.is_inference()


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_batch_size_changes_nothing_and_is_kept(vae, pictures, batch):
    options: dict[str, Any] = {"crop": "random", "crops": 2, "mirror": True}
    counting = Counting(vae)
    expected = encoded(vae, "f", pictures, SIDE, **options)
    found = encoded(counting, "f", pictures, SIDE, **options, batch=batch)
    close(found.mean, expected.mean)
    close(found.std, expected.std)
    assert counting.largest <= batch


@pytest.mark.parametrize("there", [1, 2])
def test_what_is_in_the_cache_does_not_show(vae, pictures, tmp_path, there):
    """Stopped after some pictures and gone on with: not a bit differs."""

    def stop(done: int, total: int) -> None:
        if done == there:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(vae, "f", pictures, SIDE, cache=tmp_path / "cache", progress=stop)
    assert pictures_in(tmp_path / "cache") == there
    rest = Counting(vae)
    found = encoded(rest, "f", pictures, SIDE, cache=tmp_path / "cache")
    assert rest.squares == 3 - there
    assert same(found, encoded(vae, "f", pictures, SIDE))


def test_variants_are_crops_and_their_mirror_images(vae, pictures):
    counting = Counting(vae)
    latents = encoded(counting, "f", pictures, SIDE, crop="random", crops=3, mirror=True)
    assert latents.mean.shape == (3, 6, 4, 8, 8)
    assert len(latents.mean[0].unique(dim=0)) > 2  # the wide one: several crops
    assert len(latents.mean[2].unique(dim=0)) == 2  # the square one has one crop ...
    assert counting.squares < 3 * 6  # ... and equal ones are encoded once
    square = fit(load_picture(pictures[2]), SIDE)
    for variant, tensor in [(0, square), (1, square.flip(-1)), (4, square), (5, square.flip(-1))]:
        with torch.no_grad():
            close(latents.mean[2, variant], vae.encode(tensor[None]).latent_dist.mean[0] * 0.5)


def test_centre_crop_has_one_crop_however_many_are_asked(vae, pictures):
    assert encoded(vae, "f", pictures, SIDE, crops=4).variants == 1
    assert encoded(vae, "f", pictures, SIDE, crops=4, mirror=True).variants == 2


def test_random_crops_depend_on_seed_and_content_only(vae, pictures):
    options: dict[str, Any] = {"crop": "random", "crops": 3}
    first = encoded(vae, "f", pictures, SIDE, **options, seed=1)
    assert same(first, encoded(vae, "f", pictures, SIDE, **options, seed=1))
    other_seed = encoded(vae, "f", pictures, SIDE, **options, seed=2)
    assert not torch.equal(first.mean[0], other_seed.mean[0])
    alone = encoded(vae, "f", pictures[1:2], SIDE, **options, seed=1)
    assert torch.equal(alone.mean[0], first.mean[1])  # the others' presence moves nothing


def test_pictures_of_one_size_are_cropped_in_different_places(vae, tmp_path):
    ramp = torch.arange(16 * 64).remainder(64).mul(4).to(torch.uint8).view(16, 64).numpy()
    pictures = [tmp_path / "a.png", tmp_path / "b.bmp"]  # the same pixels, other bytes
    for path in pictures:
        Image.fromarray(ramp).convert("RGB").save(path)
    latents = encoded(vae, "f", pictures, SIDE, crop="random", crops=2)
    assert not torch.equal(latents.mean[0], latents.mean[1])


def test_global_random_state_is_untouched(vae, pictures):
    before = torch.get_rng_state()
    encoded(vae, "f", pictures, SIDE, crop="random")
    assert torch.equal(before, torch.get_rng_state())


def test_progress_counts_pictures(vae, pictures, tmp_path):
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {
        "cache": tmp_path / "cache",
        "progress": lambda done, total: calls.append((done, total)),
    }
    encoded(vae, "f", pictures, SIDE, **options)
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    calls.clear()
    encoded(vae, "f", pictures, SIDE, **options)
    assert calls == [(3, 3)]


def test_small_picture_is_enlarged_and_named(vae, tmp_path, caplog):
    Image.new("RGB", (9, 12), (200, 0, 0)).save(tmp_path / "tiny.png")
    assert encoded(vae, "f", [tmp_path / "tiny.png"], SIDE).mean.shape[-2:] == (8, 8)
    assert "tiny.png is 9 x 12 pixels" in caplog.text


# --- the disk cache


def test_second_time_is_read_from_disk_bit_for_bit(vae, pictures, tmp_path):
    first = encoded(vae, "f", pictures, SIDE, mirror=True, cache=tmp_path / "a" / "b")
    assert pictures_in(tmp_path / "a" / "b") == 3
    counting = Counting(vae)
    again = encoded(counting, "f", pictures, SIDE, mirror=True, cache=tmp_path / "a" / "b")
    assert counting.squares == 0 and same(first, again) and again.names == first.names


def test_only_new_pictures_are_encoded(vae, pictures, tmp_path):
    encoded(vae, "f", pictures[1:], SIDE, cache=tmp_path / "c")
    counting = Counting(vae)
    both = encoded(counting, "f", pictures, SIDE, cache=tmp_path / "c")
    assert counting.squares == 1
    assert same(both, encoded(vae, "f", pictures, SIDE))  # each in its place


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "other"},
        {"resolution": 32},
        {"crop": "random"},
        {"mirror": True},
        {"background": (0, 0, 0)},
    ],
)
def test_any_change_is_encoded_anew(vae, pictures, tmp_path, change):
    options: dict[str, Any] = {"fingerprint": "f", "resolution": SIDE, "cache": tmp_path / "c"}
    encoded(vae, pictures=pictures, **options)
    counting = Counting(vae)
    encoded(counting, pictures=pictures, **(options | change))
    assert counting.squares >= 3


def test_random_crops_are_cached_by_seed_and_count(vae, pictures, tmp_path):
    def squares(**options: Any) -> int:
        counting = Counting(vae)
        options = {"crop": "random", "cache": tmp_path / "c"} | options
        encoded(counting, "f", pictures, SIDE, **options)
        return counting.squares

    assert squares(seed=1, crops=2) and squares(seed=2, crops=2) and squares(seed=1, crops=3)
    assert squares(seed=1, crops=2) == 0
    assert squares(seed=1, crop="center") and squares(seed=2, crop="center") == 0


def test_edited_picture_is_never_stale_and_a_renamed_one_is_not_encoded_again(
    vae, pictures, tmp_path
):
    first = encoded(vae, "f", pictures, SIDE, cache=tmp_path / "c")
    Image.new("RGB", (30, 30), (9, 9, 9)).save(pictures[0])
    edited = encoded(vae, "f", pictures, SIDE, cache=tmp_path / "c")
    assert not torch.equal(first.mean[0], edited.mean[0])
    assert torch.equal(first.mean[1:], edited.mean[1:])
    renamed = pictures[1].rename(pictures[1].with_name("new.png"))
    counting = Counting(vae)
    latents = encoded(counting, "f", [renamed], SIDE, cache=tmp_path / "c")
    assert counting.squares == 0 and latents.names == ["new.png"]


@pytest.mark.parametrize("damage", ["empty", "half", "text", "flipped bit"])
def test_damaged_cache_file_is_made_again(vae, pictures, tmp_path, caplog, damage):
    cache = tmp_path / "c"
    first = encoded(vae, "f", pictures[:1], SIDE, cache=cache)
    (path,) = cache.glob("*.latents")
    content = path.read_bytes()
    bad = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "text": b"not a tensor in sight" * 20,
        "flipped bit": content[:-5] + bytes([content[-5] ^ 4]) + content[-4:],
    }
    path.write_bytes(bad[damage])
    with caplog.at_level(logging.WARNING):
        assert same(first, encoded(vae, "f", pictures[:1], SIDE, cache=cache))
    assert path.name in caplog.text and "made again" in caplog.text
    counting = Counting(vae)
    assert same(first, encoded(counting, "f", pictures[:1], SIDE, cache=cache))
    assert counting.squares == 0  # mended on disk, too


@pytest.mark.parametrize("left", [0, 1, 100, -1, None])
def test_damaged_index_costs_no_more_than_what_it_names(vae, pictures, tmp_path, left):
    """Cut off anywhere, as by a kill, or with a flipped bit: what is lost is encoded again."""
    cache = tmp_path / "c"
    first = encoded(vae, "f", pictures, SIDE, cache=cache)
    (index,) = cache.glob("*.index")
    content = index.read_bytes()
    row = len(content) // 3
    index.write_bytes(content[:40] + b"~" + content[41:] if left is None else content[:left])
    lost = 1 if left is None else 3 - len(content[:left]) // row
    counting = Counting(vae)
    assert same(first, encoded(counting, "f", pictures, SIDE, cache=cache))
    assert counting.squares == lost
    assert pictures_in(cache) == (2 + 1 if left is None else 3)
    again = Counting(vae)
    assert same(first, encoded(again, "f", pictures, SIDE, cache=cache)) and again.squares == 0


def test_what_is_trained_on_stays_in_the_file(vae, pictures, tmp_path):
    """Views of a mapped file, which several see, and which none changes."""
    latents = encode_pictures(vae, "f", pictures, Transform(SIDE), cache=tmp_path)
    again = encode_pictures(vae, "f", pictures, Transform(SIDE), cache=tmp_path)
    assert isinstance(latents.mean, Moments) and isinstance(latents.std, Moments)
    at = latents.mean[1].data_ptr()
    assert latents.mean[1].data_ptr() == at and latents.std[1].data_ptr() != at
    before = again.mean[1].clone()
    latents.mean[1].fill_(7)
    assert torch.equal(again.mean[1], before)
    fresh = encode_pictures(vae, "f", pictures, Transform(SIDE), cache=tmp_path)
    assert torch.equal(fresh.mean[1], before)
    assert all(torch.equal(a, b) for a, b in zip(latents.std[:], again.std, strict=True))


def test_equal_pictures_are_encoded_once(vae, pictures, tmp_path):
    copy = pictures[0].with_name("copy.png")
    copy.write_bytes(pictures[0].read_bytes())
    for cache in (None, tmp_path / "c"):
        counting = Counting(vae)
        latents = encoded(counting, "f", [*pictures, copy], SIDE, cache=cache)
        assert counting.squares == 3 and latents.names[3] == "copy.png"
        assert torch.equal(latents.mean[3], latents.mean[0])


def test_cache_that_cannot_be_written_is_named(vae, pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache: .*data\.cache"):
        encoded(vae, "f", pictures, SIDE, cache=tmp_path / "file" / "cache")

    def full(self, rows):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Records, "add", full)
    with pytest.raises(UserError, match=r"No space left.*data\.cache=null"):
        encoded(vae, "f", pictures, SIDE, cache=tmp_path / "c")
    monkeypatch.undo()
    assert pictures_in(tmp_path / "c") == 0
    counting = Counting(vae)  # what has no entry is written over by nobody and read by nobody
    encoded(counting, "f", pictures, SIDE, cache=tmp_path / "c")
    assert counting.squares == 3


def test_a_full_disk_leaves_what_was_there(vae, pictures, tmp_path, monkeypatch):
    """A write that got as far as the disk had room."""
    cache = tmp_path / "c"
    first = encoded(vae, "f", pictures[:1], SIDE, cache=cache)
    (file,) = cache.glob("*.latents")
    size = file.stat().st_size
    code = (
        "import resource, sys, pathlib, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 700}, -1));"
        "import torch; from ldm.data.shelf import Shelf;"
        f"shelf = Shelf(pathlib.Path({str(cache)!r}), {file.stem!r}, ['ab' * 32]);"
        "part = torch.ones(1, 4, 8, 8); shelf.put('ab' * 32, (part, part, torch.ones(1, 6)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "latent cache" in done.stderr and "make room" in done.stderr
    assert file.stat().st_size == size and pictures_in(cache) == 1
    assert same(first, encoded(Counting(vae), "f", pictures[:1], SIDE, cache=cache))


# --- bad input


def test_unreadable_picture_is_named_and_earlier_work_kept(vae, pictures, tmp_path):
    pictures[2].write_text("text")
    with pytest.raises(UserError, match=r"2\.png"):
        encoded(vae, "f", pictures, SIDE, cache=tmp_path / "c", batch=1)
    assert pictures_in(tmp_path / "c") == 2
    with pytest.raises(UserError, match=r"gone\.png"):
        encoded(vae, "f", [tmp_path / "gone.png"], SIDE)


def test_overflowing_vae_is_reported(pictures):
    vae = AutoencoderKL(block_out_channels=[4], norm_num_groups=2).eval()
    with torch.no_grad():
        vae.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="float32"):
        encoded(vae, "f", pictures, SIDE)


def test_a_vae_that_overflows_encodes_again_in_float32(vae, pictures, tmp_path, caplog):
    large = AutoencoderKL.from_config(vae.config).eval()
    large.load_state_dict(vae.state_dict())
    with torch.no_grad():
        large.encoder.conv_in.weight.mul_(2e5)
        large.half()
    exact = AutoencoderKL.from_config(vae.config).eval()
    exact.load_state_dict(large.state_dict())
    wanted = encoded(exact, "f", pictures, SIDE)
    found = encoded(large, "f", pictures, SIDE, cache=tmp_path)
    assert same(found, wanted) and large.dtype is torch.float32
    assert caplog.text.count("overflows in float16") == 1
    with torch.no_grad():
        exact.encoder.conv_in.weight.zero_()  # what is read was encoded in float32, and is so named
    assert same(encoded(exact, "f", pictures, SIDE, cache=tmp_path), wanted)


@pytest.mark.parametrize("options", [{"resolution": 0}, {"crops": 0}, {"batch": 0}])
def test_numbers_below_one_are_refused(vae, pictures, options):
    with pytest.raises(ValueError, match="at least 1"):
        encoded(vae, "f", pictures, **({"resolution": SIDE} | options))


def test_no_pictures_are_refused(vae):
    with pytest.raises(ValueError, match="no picture"):
        encoded(vae, "f", [], SIDE)


def test_half_precision_vae_is_encoded_in_its_own_dtype(vae, pictures, tmp_path):
    half = AutoencoderKL.from_config(vae.config).to(torch.bfloat16).eval()
    half.load_state_dict(vae.state_dict())
    exact = encoded(vae, "f", pictures, SIDE, cache=tmp_path)
    rough = encoded(half, "f", pictures, SIDE, cache=tmp_path)
    assert rough.mean.dtype == torch.float32 and not same(exact, rough)
    assert np.allclose(rough.mean, exact.mean, atol=0.1)
