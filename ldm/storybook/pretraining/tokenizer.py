"""A byte-complete BPE tokenizer: the world's words, and rare ones that it never says."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
# Rare words of one token each: no caption contains them, so they are free to name a subject.
IDENTIFIERS = ("sks", "zwx", "qlk", "ohwx", "vrb", "xkq", "jbf", "tfy", "mnz", "pwq")
# Words that people try first, so that they are not spelt letter by letter.
EXTRA_WORDS = (
    *("photo", "picture", "painting", "toy", "small", "big", "little", "large", "bird", "person"),
    *("the", "and", "with", "under", "over", "near", "sitting", "standing", "style", "sun"),
)


def train_tokenizer(captions: Iterable[str], length: int, vocabulary: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` of at most `vocabulary` tokens; any text can be tokenised with it.

    It starts from all 256 bytes, alone and at the end of a word, and learns merges until every
    word of the captions and each identifier is one token. `length` becomes `model_max_length`.
    """
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words = [*IDENTIFIERS, *EXTRA_WORDS] * 50
    backend.train_from_iterator([*captions, *words], trainer)
    learnt = backend.model.__getstate__()  # JSON: the only view of a trained model's merges
    return _clip_tokenizer(learnt, alphabet, length)


def _clip_tokenizer(learnt: bytes, alphabet: list[str], length: int) -> CLIPTokenizer:
    import json

    model = json.loads(learnt)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    tokens += [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=length,
    )
