"""Prompts to embeddings, once per distinct prompt."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.models.base import BaseModel, load_base
from ldm.models.text import describe_identifier, tokens_of

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
