"""run.json: what a configuration names but does not hold, and who made a run with what."""

import platform
import shlex
import sys
from importlib import metadata
from typing import Any

from ldm.config import Config, flat
from ldm.data.ledger import digest_of
from ldm.data.masks import mask_beside
from ldm.run.device import precision_of
from ldm.run.prepare import Prepared

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
)


def run_facts(config: Config, ready: Prepared) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "base": ready.base.source,
        "base_fingerprint": ready.base.fingerprint,
        **_input_facts(config, ready),
        "identifier": config.subject.identifier,
        "class_noun": config.subject.class_noun,
        "seed": config.seed,
        "precision": precision_of(config),
        "steps": config.training.steps,  # raised later or not, shares of the steps are of these
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
        "command": shlex.join(["python", *sys.argv]),
        "config": flat(config),  # of the last start; what it goes on from is compared with it
    }


def _input_facts(config: Config, ready: Prepared) -> dict[str, dict[str, Any]]:
    """sha256 of each picture, mask and class picture of your own; each picture's prompts."""
    pictures = [picture for subject in ready.subjects for picture in subject.pictures]
    prompts = [several for subject in ready.subjects for several in subject.prompts]
    names = ready.digests.keys()  # in the order of the pictures
    masks = {name: mask_beside(path) for name, path in zip(names, pictures, strict=True)}
    masked = config.objective.mask_outside is not None
    return {
        "pictures": ready.digests,
        "prompts": dict(zip(names, prompts, strict=True)),
        "masks": {name: digest_of(mask) for name, mask in masks.items() if mask and masked},
        "class_pictures": {
            path.name: ready.ledger.digest(path) for path in ready.own_class_pictures
        },
    }
