"""The tokenizer of a single file, which holds none: from a folder, the hub or its metadata."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.models.folder import is_hub_id

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

log = logging.getLogger(__name__)

CLIP = "openai/clip-vit-large-patch14"  # the vocabulary of Stable Diffusion 1.x, 2.x and XL
CLIP_WORDS = 49408
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def find_tokenizer(source: str | None) -> "CLIPTokenizer":
    """The tokenizer in a folder or a hub id, or CLIP's from the hub's cache or the hub.

    A folder may be a whole model's. UserError: it cannot be had.
    """
    if source is None:
        return read_tokenizer(_fetch(CLIP, "model.tokenizer: not given"))
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not is_hub_id(source):
            raise UserError(f"model.tokenizer={source}: no such folder; give one, or a hub id")
        folder = _fetch(source, f"model.tokenizer={source}")
    return read_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)


def _fetch(name: str, key: str) -> Path:
    """Take the files from the hub's cache, else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [*FILES, *(f"tokenizer/{file}" for file in FILES)]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"{key}, and {name} is neither in the hub's cache nor could it be fetched "
            f"({type(error).__name__}). A single file holds no tokenizer: give "
            "model.tokenizer=FOLDER with vocab.json and merges.txt (the tokenizer/ of any Stable "
            "Diffusion folder)"
        ) from error


def read_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Open a folder's tokenizer. UserError where its files are missing or damaged."""
    from transformers import CLIPTokenizer

    there = [name for name in FILES if (folder / name).is_file()]
    # Without these files CLIPTokenizer opens with two tokens and no error.
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= set(there):
        raise UserError(
            f"model.tokenizer: {folder} has neither tokenizer.json nor vocab.json and merges.txt"
        )
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(f"model.tokenizer: {folder} cannot be read ({error})") from error


def to_texts(tokenizer: "CLIPTokenizer") -> dict[str, str]:
    """What of a tokenizer travels with a single file: all of it, but for CLIP's own words."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        names = ["tokenizer_config.json"]
        names += ["tokenizer.json"] if len(tokenizer) != CLIP_WORDS else []
        return {name: (Path(folder) / name).read_text("utf-8") for name in names}


def from_texts(texts: dict[str, str]) -> "CLIPTokenizer":
    """What `to_texts` was given, where the words are among the texts."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            if name in texts:
                (Path(folder) / name).write_text(texts[name], "utf-8")
        return read_tokenizer(Path(folder))


def padded_with(tokenizer: "CLIPTokenizer", token: str, longest: int) -> "CLIPTokenizer":
    """Set what prompts are filled up with, and how many tokens fit."""
    made: Any = tokenizer
    made.pad_token = token
    made.model_max_length = min(made.model_max_length, longest)
    return made
