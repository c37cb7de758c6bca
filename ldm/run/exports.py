"""What of a run goes into files for other tools."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.export import diffusers_files, embedding_file, kohya_file
from ldm.export.lora import Files
from ldm.models.adapters import Adapter, extract_lora
from ldm.run.subjects import identifiers_of
from ldm.run.trained import Trained, load_untouched

log = logging.getLogger(__name__)

EXTRACTED = "dreambooth.extracted"  # key in a file's header: rank and relative error


def lora_files(trained: Trained, run: Path, rank: int | None = None) -> Files:
    """The adapter as diffusers and peft open it; rank: extract one. UserError: there is none."""
    adapters, note = _adapters(trained, run, rank)
    files = diffusers_files(adapters)
    return {name: _noted(content, note) for name, content in files.items()}


def kohya_files(trained: Trained, run: Path, rank: int | None = None) -> Files:
    """As `lora_files`, one file for single-file tools, named after the run."""
    adapters, note = _adapters(trained, run, rank)
    file = kohya_file(adapters, trained.base.unet.config, trained.about(run))
    return {f"{run.resolve().name}.safetensors": _noted(file, note)}


def _noted(content: Any, note: Mapping[str, str]) -> Any:
    if isinstance(content, str):
        return content
    return replace(content, metadata={**content.metadata, **note})


def _adapters(
    trained: Trained, run: Path, rank: int | None
) -> tuple[Mapping[str, Adapter], Mapping[str, str]]:
    """The run's own adapters, or extracted ones, with a note for the file's header."""
    if rank is None:
        if not trained.adapters:
            raise UserError(
                f"{run} trained all weights and has no adapter; give --rank N (as 16) to extract a "
                "LoRA from what they changed"
            )
        if any(adapter.rows for adapter in trained.adapters.values()):
            log.warning(
                "%s trained its identifier's embedding too, which this file has no place for: "
                "write it with --format embedding, and say <word> in prompts",
                run,
            )
        return trained.adapters, {}
    for adapter in trained.adapters.values():
        adapter.merge()
    parts = [name.split(".")[0] for name in trained.manifest["files"]]
    untouched = load_untouched(trained.config)
    networks = {name: getattr(untouched, name) for name in dict.fromkeys(parts)}
    after = {name: getattr(trained.base, name) for name in networks}
    adapters, error = extract_lora(networks, after, rank)
    log.info("extracted at rank %d: %.1f %% of the change is left out", rank, 100 * error)
    return adapters, {EXTRACTED: f"rank {rank}, relative error {error:.4f}"}


def embedding_files(trained: Trained) -> Files:
    """One file for each identifier, its rows of the token embedding by the name <identifier>.

    UserError: the run did not train them.
    """
    base = trained.base
    for adapter in trained.adapters.values():
        adapter.merge()
    after = base.text_encoder.get_input_embeddings().weight
    before = load_untouched(trained.config).text_encoder.get_input_embeddings().weight
    files = {}
    for word in identifiers_of(trained.config):
        tokens = base.tokenizer(word, add_special_tokens=False).input_ids
        if not tokens or torch.equal(after[tokens], before[tokens]):
            raise UserError(
                f"--format embedding: the run left the embedding of {word!r} as the base has it; "
                "train it with model.train_text_encoder or training.pivotal, or take another format"
            )
        files[f"{word}.safetensors"] = embedding_file(after, tokens, f"<{word}>")
    return files
