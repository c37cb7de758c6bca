"""What an exported model says of itself: whom it learnt, from what, how, and with which result."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ldm.config import flat
from ldm.models.base import BaseModel
from ldm.models.files.weights_file import open_weights
from ldm.models.text import USUAL
from ldm.run.folder import read_config, read_facts
from ldm.run.settings import filled

log = logging.getLogger(__name__)

RECIPE = (
    "model.train_text_encoder",
    "data.resolution",
    "data.aspect",
    "seed",
    "training.steps",
    "training.batch",
    "training.learning_rate",
    "training.text_encoder_learning_rate",
    "training.optimizer",
    "training.schedule",
    "training.precision",
    "training.pivotal",
    "prior",
    "prior.images",
    "prior.target",
    "prior.count",
    "prior.batch",
    "prior.weight",
    "objective.loss",
    "objective.weighting",
)


def describe(
    run: Path, base: BaseModel, step: int, weights: str, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Plain values for `export_folder` and `export_single_file`.

    base: the model that `step` of `run` was loaded into; weights: what these are known by; result:
    the run's evaluation.json, if there is one.
    """
    config = read_config(run)
    told, scores = flat(config), (result or {}).get("snapshots", {}).get(str(step))
    about = {
        "identifier": config.subject.identifier,
        "class_noun": config.subject.class_noun,
        "base": base_name(base.source),
        "base_fingerprint": base.fingerprint,
        "run": run.resolve().name,
        "step": step,
        "weights": weights,
        "prompts": list(dict.fromkeys(filled(config, config.subject.prompt))),
        "recipe": {key: told[key] for key in RECIPE if key in told},
        "licence": licence_of(base.source),
        **pictures_of(run, Path(config.subject.pictures)),
    }
    if base.reading != USUAL:
        about["reading"] = asdict(base.reading)
    adapter = config.adapter
    if adapter and adapter.timestep_rank is not None:
        about["timestep_rank"] = [adapter.timestep_rank, adapter.rank]  # at most noise, at least
    if result and scores:
        about |= {"metrics": scores, "base_metrics": result["base"]}
    return about


def warn_of_whole_rank(about: Mapping[str, Any]) -> None:
    """Say what an export cannot keep of the run that says `about` of itself, if anything."""
    if "timestep_rank" in about:
        log.warning(
            "adapter.timestep_rank=%d is kept by the run alone (scripts/sample.py --run): what is "
            "exported draws with the whole rank at all timesteps, which was not measured",
            about["timestep_rank"][0],
        )


def base_name(source: str) -> str:
    """A hub id or a relative path as it is; of another path its last part, with no word of where.

    Which base it is stands in its fingerprint.
    """
    path = Path(source)
    return path.name if path.is_absolute() or source.startswith("~") else source


def licence_of(source: str) -> str | None:
    """The licence that a base's card or a file's metadata name; None where they name none."""
    path = Path(source).expanduser()
    if path.is_file():
        return open_weights(path).metadata.get("modelspec.license")
    card = path / "README.md" if path.is_dir() else _cached_card(source)
    if card is None or not card.is_file():
        return None
    parts = card.read_text("utf-8", errors="replace").split("---\n", 2)
    try:
        told = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    return str(told["license"]) if isinstance(told, dict) and told.get("license") else None


def _cached_card(source: str) -> Path | None:
    """The card of a hub model, where it was fetched with the weights."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "README.md")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def pictures_of(run: Path, folder: Path) -> dict[str, Any]:
    """Name and sha256 of the pictures trained on; their folder where it is one below here."""
    known = read_facts(run).get("pictures", {})
    own = {name: digest for name, digest in known.items() if "/" not in name}  # the first subject's
    about: dict[str, Any] = {"pictures": own}
    if not folder.is_absolute() and folder.resolve().is_relative_to(Path.cwd().resolve()):
        about["pictures_folder"] = folder.as_posix()
    return about
