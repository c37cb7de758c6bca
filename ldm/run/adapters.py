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
    encoders = {name: network for name, network in base.networks.items() if name != "unet"}
    networks = base.networks if config.model.train_text_encoder else {"unet": base.unet}
    section = asdict(config.adapter)
    del section["frozen"]  # of the base
    timesteps = base.scheduler.config.num_train_timesteps
    settings = AdapterSettings(**section, timesteps=timesteps)
    tokens = dict(zip(encoders, identifier_tokens(config, base), strict=True))
    rows = tokens if config.training.pivotal else {}
    return add_adapters(networks, settings, config.seed, encoders, rows)


def identifier_tokens(config: Config, base: BaseModel) -> list[list[int]]:
    """Ids of the tokens that name the subjects, of each text encoder."""
    words = identifiers_of(config)
    return [
        sorted({token for ids in tokens for token in ids})
        for tokens in (
            [tokenizer(word, add_special_tokens=False).input_ids for word in words]
            for tokenizer in base.text.tokenizers
        )
    ]
