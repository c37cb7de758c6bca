"""The identifier's token embedding alone, as textual inversion (arXiv 2208.01618) is shared."""

from collections.abc import Sequence

from torch import Tensor

from ldm.export.lora import TensorFile

XL = ("clip_l", "clip_g")  # the names of SDXL's two text encoders in such files


def embedding_file(
    embeddings: Sequence[Tensor], tokens: Sequence[Sequence[int]], word: str
) -> TensorFile:
    """A file for diffusers' `load_textual_inversion`: one tensor [n, D] by the name of `word`.

    Of SDXL's two text encoders one tensor each. embeddings: of each text encoder, [vocabulary, D];
    tokens: of each the ids of the identifier's n tokens.
    """
    names = XL if len(embeddings) > 1 else (word,)
    held = zip(names, embeddings, tokens, strict=True)
    tensors = {name: embedding.detach()[list(own)] for name, embedding, own in held}
    return TensorFile(tensors, {"modelspec.trigger_phrase": word})
