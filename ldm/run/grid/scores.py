"""What a run's instruments read off the pictures of a grid."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.images import find_pictures
from ldm.errors import UserError
from ldm.evaluation import rows
from ldm.evaluation.measure import Measurer
from ldm.evaluation.pictures import Asked
from ldm.run.folder import read_config
from ldm.run.measure.instruments import load_instruments
from ldm.run.prepare import HELDOUT
from ldm.run.sheet import readable

log = logging.getLogger(__name__)

SHOWN = {"identity": "recognised", "fidelity/oracle": "likeness", "fidelity/dino": "DINO"}


def measurer_of(run: Path, device: str) -> Measurer | None:
    """The run's instruments, and its subject's pictures; None, and a word why, without them."""
    config = read_config(run)
    if config.evaluation is None:
        log.info("%s has no evaluation: no scores", run)
        return None
    try:
        instruments = load_instruments(config.evaluation, device)
        folder = Path(config.subject.pictures)
        training = readable(find_pictures(folder))
        beside = folder / HELDOUT
        heldout = readable(find_pictures(beside)) if beside.is_dir() else []
    except UserError as error:
        log.warning("no scores: %s", error)
        return None
    if not instruments or not training:
        log.info("no scores: %s", instruments.missing or f"{folder} holds no picture")
        return None
    return Measurer(
        config.subject.identifier,
        training,
        heldout,
        oracle=instruments.oracle,
        extractors=instruments.extractors,
    )


def scores_of(measurer: Measurer, paths: list[Path], prompts: list[str]) -> list[dict[str, Any]]:
    """Of each picture likeness to the subject's ("fidelity/<space>"), and what the oracle reads."""
    asked = [Asked("subject", prompt, 0, {}) for prompt in prompts]
    seen, table = measurer.look(paths), rows.rows_of(asked)
    if measurer.oracle is not None:
        references = measurer.references.features["oracle"]
        own = measurer.oracle.accepts(seen.features["oracle"], references)
        rows.add_readings(table, asked, seen, own)
    for space, drawn in seen.features.items():
        rows.add_similarities(table, space, drawn, measurer.references.features[space])
    told = ("identity", "none", "fidelity/", "read/")
    return [{key: row[key] for key in row if key.startswith(told)} for row in table]


def caption(scores: list[dict[str, Any]]) -> str:
    """Means over a cell's pictures, in a few words a line."""
    parts = [
        f"{word} {np.mean([score[key] for score in scores]):.2f}"
        for key, word in SHOWN.items()
        if scores and key in scores[0]
    ]
    return "\n".join(parts)
