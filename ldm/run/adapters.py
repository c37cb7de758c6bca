"""The adapters that a configuration asks for."""

from dataclasses import asdict

from ldm.config import Config
from ldm.models.adapters import Adapter, AdapterSettings, add_adapters
from ldm.models.base import BaseModel


def adapters_of(config: Config, base: BaseModel) -> dict[str, Adapter]:
    """Put the section `adapter` into `base`'s networks, in place; none where it is null.

    UserError: targets that match nothing, sizes that do not fit.
    """
    if config.adapter is None:
        return {}
    networks = {"unet": base.unet}
    if config.model.train_text_encoder:
        networks["text_encoder"] = base.text_encoder
    return add_adapters(networks, AdapterSettings(**asdict(config.adapter)), config.seed)
