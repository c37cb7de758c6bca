"""Prompts to what a UNet reads of them; what words become as tokens."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.emphasis import Prompt, Window, emphasise, windows_of

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEmbedding:
    """What a UNet reads of N prompts."""

    states: Tensor  # [N, L, D], for cross-attention
    pooled: Tensor | None = None  # [N, P], SDXL's; None: the UNet reads no such thing

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, places: slice | Tensor) -> "TextEmbedding":
        """The embeddings of some of the prompts."""
        return self._each(lambda tensor: tensor[places])

    def split(self, counts: Sequence[int]) -> list["TextEmbedding"]:
        """The embeddings of the first prompts, of those that follow, ...: so many of each."""
        ends = itertools.accumulate(counts)
        return [self[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def to(self, dtype: torch.dtype) -> "TextEmbedding":
        return self._each(lambda tensor: tensor.to(dtype))

    @staticmethod
    def cat(parts: Sequence["TextEmbedding"]) -> "TextEmbedding":
        """The embeddings of all prompts of the parts, in order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        states = torch.cat([part.states for part in parts])
        return TextEmbedding(states, torch.cat(pooled) if pooled else None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TextEmbedding":
        pooled = None if self.pooled is None else change(self.pooled)
        return TextEmbedding(change(self.states), pooled)


@dataclass(frozen=True)
class Reading:
    """How prompts are read. No weights say so: whoever draws with a model has to know it.

    clip_skip: how many of a text encoder's last layers are passed over (diffusers' `clip_skip`;
    A1111's "Clip skip" is one more). chunks: how many windows of the encoder's length a prompt
    has, encoded apart and laid end to end, as in A1111 and ComfyUI.
    """

    clip_skip: int = 0
    chunks: int = 1


USUAL = Reading()


@dataclass(frozen=True)
class TextEncoders:
    """The tokenizers and text encoders of one base, in the same order: one of each, or SDXL's two.

    zero_empty_prompt: the empty prompt's embedding is zeros, in training as in guidance.
    """

    tokenizers: tuple["CLIPTokenizer", ...]
    encoders: tuple[Any, ...]
    zero_empty_prompt: bool = False
    reading: Reading = USUAL

    @property
    def room(self) -> int:
        """How many tokens of a prompt are seen."""
        return self.reading.chunks * (self.tokenizers[0].model_max_length - 2)  # start and end

    def windows(self, prompt: Prompt) -> int:
        """In how many windows a prompt is read: `Reading.chunks`, or more if it has sections."""
        if isinstance(prompt, str):
            return self.reading.chunks
        return len(windows_of(self.tokenizers[0], prompt, self.reading.chunks)[0])

    def encode(self, prompts: Sequence[Prompt], device: str | torch.device) -> TextEmbedding:
        """Encode N prompts, L = windows x the tokenizer's model_max_length.

        Of one encoder: its last hidden states, as in diffusers' StableDiffusionPipeline. Of SDXL's
        two: the hidden states before the last layer, side by side, and the second one's projection
        of its (first) end token (arXiv 2307.01952, section 2.1), as in StableDiffusionXLPipeline.
        Weights of words change hidden states (`emphasise`), nothing pooled. All prompts have the
        windows of the longest, empty ones at the end.

        Equal prompts go through the encoders once and are indexed, so that a batch of few distinct
        prompts is cheap; gradients are those of encoding each. A prompt of more than `room` tokens
        is cut, with one warning per prompt.
        """
        distinct = list(dict.fromkeys(prompts))
        for prompt in distinct:
            _warn_if_cut(self.tokenizers[0], prompt, self.reading.chunks)
        count = max(self.windows(prompt) for prompt in distinct)
        read = [self._read(place, distinct, count, device) for place in range(len(self.encoders))]
        pooled = read[-1][1]
        if pooled is not None:
            pooled = pooled[::count]  # [n x windows, P] -> [n, P]
        states = torch.cat([states for states, _ in read], dim=-1)
        states = rearrange(states, "(n windows) l d -> n (windows l) d", windows=count)
        embedding = TextEmbedding(states, pooled)
        if self.zero_empty_prompt and "" in distinct:
            embedding = _with_zeros(embedding, distinct.index(""))
        if len(distinct) == len(prompts):
            return embedding
        places = [distinct.index(prompt) for prompt in prompts]
        return embedding[torch.tensor(places, device=embedding.states.device)]  # n -> N

    def _read(
        self, place: int, prompts: Sequence[Prompt], count: int, device: str | torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """One encoder's states [n x count, L, D] of n prompts in `count` windows each, weighted;
        beside them what it pools of each window."""
        tokenizer, encoder = self.tokenizers[place], self.encoders[place]
        windows: list[Window] = []
        for prompt in prompts:
            own, _ = windows_of(tokenizer, prompt, self.reading.chunks)
            windows += [*own, *[Window([], [])] * (count - len(own))][:count]
        weighted = any(weight != 1 for window in windows for weight in window.weights)
        rows = [*windows, Window([], [])] if weighted else windows
        outputs = self._run(tokenizer, encoder, rows, device)
        skip, pooled = self.reading.clip_skip, None
        if len(self.encoders) > 1:
            states = outputs.hidden_states[-2 - skip]
            pooled = getattr(outputs, "text_embeds", None)
        elif skip:
            states = encoder.final_layer_norm(outputs.hidden_states[-1 - skip])
        else:
            states = outputs.last_hidden_state
        if weighted:
            states = emphasise(states[:-1], states[-1:], windows)
        return states, None if pooled is None else pooled[: len(windows)]

    def _run(
        self,
        tokenizer: "CLIPTokenizer",
        encoder: Any,
        windows: Sequence[Window],
        device: str | torch.device,
    ) -> Any:
        """One encoder's outputs of these windows."""
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        tokens = tokenizer.pad(
            {"input_ids": [[first, *window.tokens, last] for window in windows]},
            padding="max_length",
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        masked = getattr(encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        more = len(self.encoders) > 1 or self.reading.clip_skip > 0
        return encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=more)

    def unread(self) -> Iterator[nn.Parameter]:
        """Parameters that no embedding depends on: layers that are passed over.

        SDXL reads the first encoder before its last layer, and nothing pooled of it; of the second
        one what is pooled has been through all layers.
        """
        first, two = self.encoders[0], len(self.encoders) > 1
        for layer in first.encoder.layers[
            len(first.encoder.layers) - self.reading.clip_skip - two :
        ]:
            yield from layer.parameters()
        if two:
            yield from first.final_layer_norm.parameters()

    def to(self, device: str | torch.device) -> Self:
        """Move the encoders."""
        for encoder in self.encoders:
            nn.Module.to(encoder, device=device)
        return self


def _with_zeros(embedding: TextEmbedding, place: int) -> TextEmbedding:
    """The embedding of one prompt multiplied by 0: then every encoder still has gradients."""

    def zeroed(tensor: Tensor) -> Tensor:
        kept = torch.ones_like(tensor[:, :1])
        kept[place] = 0
        return tensor * kept

    return embedding._each(zeroed)


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
def _warn_if_cut(tokenizer: "CLIPTokenizer", prompt: Prompt, chunks: int) -> None:
    windows, lost = windows_of(tokenizer, prompt, chunks)
    if lost:
        fit = sum(len(window.tokens) for window in windows)
        unseen = "".join(tokenizer.convert_ids_to_tokens(lost)).replace("</w>", " ").strip()
        log.warning(
            "prompt %r has %d tokens, %d fit: %r is not seen (model.prompt_chunks makes room)",
            *(prompt if isinstance(prompt, str) else prompt.text, fit + len(lost), fit, unseen),
        )
