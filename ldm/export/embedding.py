"""The identifier's token embedding alone, as textual inversion (arXiv 2208.01618) is shared."""

from collections.abc import Sequence

from torch import Tensor

from ldm.export.lora import TensorFile


def embedding_file(embedding: Tensor, tokens: Sequence[int], word: str) -> TensorFile:
    """A file for diffusers' `load_textual_inversion`: one tensor [n, D] by the name of `word`.

    embedding: of the text encoder, [vocabulary, D]; tokens: ids of the identifier's n tokens.
    """
    return TensorFile({word: embedding.detach()[list(tokens)]}, {"modelspec.trigger_phrase": word})
