"""Prompts to embeddings, once per distinct prompt."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.models.base import BaseModel, load_base
from ldm.models.choices import Choices
from ldm.models.text import Reading, describe_identifier, tokens_of

PROMPTS = ["a drawing of sks robot", "a dog", "a drawing of sks robot", "a dog", "a dog"]


@pytest.fixture(scope="module")
def base(tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    return load_base(tiny_base_folder("v"))


def encode(base: BaseModel, prompts: list[str]) -> torch.Tensor:
    return base.text.encode(prompts, "cpu").states


def test_same_as_diffusers(base: BaseModel, tiny_base_folder: Callable[[str], Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_folder("v"))
    with torch.no_grad():
        theirs = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        ours = encode(base, PROMPTS)
    assert ours.shape == (5, 32, 16)
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours[0], ours[1])


def test_distinct_prompts_are_encoded_once_with_the_same_gradients(base: BaseModel) -> None:
    rows = []
    hook = base.text_encoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    weights = torch.randn(5, 32, 16, generator=torch.Generator().manual_seed(0))
    parameters = list(base.text_encoder.parameters())
    once = torch.autograd.grad((encode(base, PROMPTS) * weights).sum(), parameters)
    each = torch.cat([encode(base, [prompt]) for prompt in PROMPTS])
    apart = torch.autograd.grad((each * weights).sum(), parameters)
    hook.remove()
    assert rows == [2, 1, 1, 1, 1, 1]
    for one, two in zip(once, apart, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_cut_prompt_warns_once(base: BaseModel, caplog: pytest.LogCaptureFixture) -> None:
    fits = " ".join(["dog"] * 30)
    long = f"{fits} on the beach"
    with caplog.at_level(logging.WARNING, logger="ldm"):
        encode(base, [fits, fits])
        assert not caplog.records
        encode(base, [long, long])
        encode(base, [long])
    assert len(caplog.records) == 1
    assert "'on the beach' is not seen" in caplog.text


def test_identifier(base: BaseModel) -> None:
    assert tokens_of(base.tokenizer, "sks robot") == ["sks</w>", "robot</w>"]
    assert describe_identifier(base.tokenizer, "sks") is None
    several = describe_identifier(base.tokenizer, "olis")
    assert several is not None and "4 tokens (o + l + i + s)" in several
    two_words = describe_identifier(base.tokenizer, "robot dog")
    assert two_words is not None and "robot + dog" in two_words
    empty = describe_identifier(base.tokenizer, " ")
    assert empty is not None and "empty" in empty


def test_passing_over_a_layer_is_an_encoder_without_it(
    tiny_base_folder: Callable[[str], Path],
) -> None:
    """As Stable Diffusion 2.x comes: of 24 layers 23, then the last norm."""
    from transformers import CLIPTextModel

    folder = tiny_base_folder("eps")
    base = load_base(folder, choices=Choices(reading=Reading(clip_skip=1)))
    config = base.text_encoder.config
    shorter = load_base(folder)
    fewer = CLIPTextModel(type(config)(**{**config.to_dict(), "num_hidden_layers": 1})).eval()
    fewer.load_state_dict(shorter.text_encoder.state_dict(), strict=False)
    shorter.text_encoder = fewer
    with torch.no_grad():
        torch.testing.assert_close(encode(base, PROMPTS), encode(shorter, PROMPTS))
        assert not torch.allclose(encode(base, PROMPTS), encode(load_base(folder), PROMPTS))


def test_what_is_passed_over_is_not_read(tiny_base_folder: Callable[[str], Path]) -> None:
    base = load_base(tiny_base_folder("eps"))
    text = replace(base.text, reading=Reading(clip_skip=1))
    unread = {id(parameter) for parameter in text.unread()}
    assert len(unread) == 16 and not list(base.text.unread())
    text.encode(PROMPTS, "cpu").states.sum().backward()
    for parameter in base.text_encoder.parameters():
        assert (parameter.grad is None) == (id(parameter) in unread)


@pytest.mark.parametrize("kind", ["eps", "sdxl"])
def test_a_long_prompt_is_read_in_windows(
    tiny_base_folder: Callable[[str], Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = " ".join(["dog"] * 30), "on the beach"
    base = load_base(tiny_base_folder(kind))
    text = replace(base.text, reading=Reading(chunks=2))
    assert text.room == 60
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="ldm"):
        both = text.encode([f"{first} {second}", "a dog"], "cpu")
        alone = base.text.encode([first, second, "a dog", "   "], "cpu")
    assert not caplog.records
    expected = alone.states.reshape(2, 2 * 32, -1)  # two windows, end to end
    torch.testing.assert_close(both.states, expected)
    if both.pooled is not None and alone.pooled is not None:
        torch.testing.assert_close(both.pooled, alone.pooled[::2])


def test_a_reading_is_part_of_what_a_base_is(tiny_base_folder: Callable[[str], Path]) -> None:
    folder = tiny_base_folder("eps")
    readings = (Reading(), Reading(clip_skip=1), Reading(chunks=2))
    found = [load_base(folder, choices=Choices(reading=reading)) for reading in readings]
    assert len({base.fingerprint for base in found}) == 3
    assert len({base.vae_fingerprint for base in found}) == 1
    with pytest.raises(UserError, match=r"model.clip_skip=2: .* text encoders of 2 layers"):
        load_base(folder, choices=Choices(reading=Reading(clip_skip=2)))


def test_an_export_says_how_it_reads() -> None:
    told = Choices().with_told({"reading": {"clip_skip": 1, "chunks": 3}})
    assert told.reading == Reading(1, 3)
    assert Choices(reading=Reading(0, 2)).with_told({"reading": {}}).reading == Reading(0, 2)
    assert Choices().with_told({}) == Choices()
