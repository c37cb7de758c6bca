"""Prompts to CLIP embeddings; what words become as tokens."""

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger(__name__)


def encode_prompts(
    tokenizer: "CLIPTokenizer",
    text_encoder: "CLIPTextModel",
    prompts: Sequence[str],
    device: str | torch.device,
) -> Tensor:
    """Encode prompts -> [N, L, D]: last hidden states, L = tokenizer.model_max_length.

    Equal prompts go through the encoder once and are indexed, so that a batch of few distinct
    prompts is cheap; gradients are those of encoding each. A prompt of more than L tokens is cut,
    with one warning per prompt. As in diffusers' StableDiffusionPipeline.encode_prompt.
    """
    distinct = list(dict.fromkeys(prompts))
    tokens = tokenizer(
        distinct,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    for prompt in distinct:
        _warn_if_cut(tokenizer, prompt)
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    states = text_encoder(
        tokens.input_ids.to(device),
        attention_mask=tokens.attention_mask.to(device) if masked else None,
    )[0]  # distinct -> [n, L, D]
    if len(distinct) == len(prompts):
        return states
    places = [distinct.index(prompt) for prompt in prompts]
    return states[torch.tensor(places, device=states.device)]  # [n, L, D] -> [N, L, D]


def tokens_of(tokenizer: "CLIPTokenizer", text: str) -> list[str]:
    """Return the tokens that `text` becomes, without the ones for start, end and padding."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids  # no length warning
    return list(tokenizer.convert_ids_to_tokens(ids))


def describe_identifier(tokenizer: "CLIPTokenizer", identifier: str) -> str | None:
    """Return a warning if the identifier is not exactly one token, else None."""
    tokens = tokens_of(tokenizer, identifier)
    if not tokens:
        return (
            "subject.identifier: empty, so prompts name the subject by nothing but its class noun "
            "and every member of the class drifts towards it; a rare word of one token is better"
        )
    if len(tokens) > 1:
        pieces = " + ".join(token.removesuffix("</w>") for token in tokens)
        return (
            f"subject.identifier: {identifier!r} is {len(tokens)} tokens ({pieces}), each with a "
            "meaning of its own; a rare word of one token is bound faster and disturbs less"
        )
    return None


# A cached function warns once per prompt; the size bounds what is remembered.
@functools.lru_cache(maxsize=4096)
def _warn_if_cut(tokenizer: "CLIPTokenizer", prompt: str) -> None:
    room = tokenizer.model_max_length - 2  # start and end
    tokens = tokens_of(tokenizer, prompt)
    if len(tokens) > room:
        lost = "".join(tokens[room:]).replace("</w>", " ").strip()
        log.warning(
            "prompt %r has %d tokens, %d fit: %r is not seen", prompt, len(tokens), room, lost
        )
