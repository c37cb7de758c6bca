"""The configuration: what can be set, where it is read from, what is allowed."""

from ldm.config.load import (
    config_keys,
    differences,
    flat,
    instantiate,
    load_config,
    split_command_line,
    to_yaml,
)
from ldm.config.schema import Config, Evaluation, MoreSubject, Prior, Sampling, Subject, Training

__all__ = [
    "Config",
    "Evaluation",
    "MoreSubject",
    "Prior",
    "Sampling",
    "Subject",
    "Training",
    "config_keys",
    "differences",
    "flat",
    "instantiate",
    "load_config",
    "split_command_line",
    "to_yaml",
]
