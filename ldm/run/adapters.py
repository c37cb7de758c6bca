"""The adapters that a configuration asks for."""

from dataclasses import asdict

from ldm.config import Config
from ldm.models.adapters import Adapter, AdapterSettings, add_adapters
from ldm.models.base import BaseModel
from ldm.run.subjects import identifiers_of


def adapters_of(config: Config, base: BaseModel) -> dict[str, Adapter]:
    """Put the section `adapter` into `base`'s networks, in place; none where it is null.

    UserError: targets that match nothing, sizes that do not fit.
    """
    if config.adapter is None:
        return {}
    networks = {"unet": base.unet}
    if config.model.train_text_encoder:
        networks["text_encoder"] = base.text_encoder
    settings = AdapterSettings(**asdict(config.adapter))
    embedded = {"text_encoder": base.text_encoder} if config.training.pivotal else {}
    tokens = identifier_tokens(config, base)
    return add_adapters(networks, settings, config.seed, embedded, tokens)


def identifier_tokens(config: Config, base: BaseModel) -> list[int]:
    """Ids of the tokens that name the subjects."""
    words = identifiers_of(config)
    ids = [base.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    return sorted({token for tokens in ids for token in tokens})
