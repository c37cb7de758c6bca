"""Where a base model's files are: a diffusers folder, or a hub id fetched into one."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError

log = logging.getLogger(__name__)

# Part -> the stem that diffusers and transformers give its weight file.
WEIGHT_STEMS = {
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder_2": "model",
}
_BIN_STEMS = {  # transformers' older names
    **WEIGHT_STEMS,
    "text_encoder": "pytorch_model",
    "text_encoder_2": "pytorch_model",
}
_CONFIGS = {
    "text_encoder": "config.json",
    "vae": "config.json",
    "unet": "config.json",
    "scheduler": "scheduler_config.json",
    "text_encoder_2": "config.json",
}
_TOKENIZERS = ("tokenizer", "tokenizer_2")
INDEX = "model_index.json"  # of SDXL: it says what the empty prompt is
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
SDXL_PARTS = (*PARTS, "tokenizer_2", "text_encoder_2", INDEX)


def find_folder(
    source: str | Path, revision: str | None = None, variant: str | None = None
) -> Path:
    """Return the diffusers folder that `source` names: a folder, or a hub id ("owner/name").

    A hub id is downloaded on first use into the Hugging Face cache (only the parts used here, as
    safetensors where there are some). UserError: no such folder, or the hub cannot
    be reached or has no such model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    name = str(source)
    if path.is_file() or not is_hub_id(name):
        raise UserError(
            f"model {source}: no such folder or file; give a diffusers folder, a single file or a "
            "hub id"
        )
    return _download(name, revision, variant)


def is_hub_id(name: str) -> bool:
    """Whether it has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and name[-1] != "/"


def find_vae_folder(source: str | Path, key: str) -> Path:
    """The folder of a VAE: `source` itself, `vae` in a model's folder, or fetched from the hub.

    UserError, naming `key`: no such folder, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not is_hub_id(str(source)):
            raise UserError(f"{key}={source}: no such folder or file; nor is it a hub id")
        stem = WEIGHT_STEMS["vae"]
        files = ("config.json", f"{stem}.safetensors", f"{stem}.bin")
        patterns = [f"{place}{name}" for place in ("", "vae/") for name in files]
        try:
            folder = Path(snapshot_download(str(source), allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}={source}: no folder of this name, and not to be had from the hub "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}={source}: has no config.json; give a VAE's folder")
    return folder


def _download(name: str, revision: str | None, variant: str | None) -> Path:
    """Fetch hub model `name`; weights as safetensors, or else as .bin."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    configs = [INDEX, "README.md", *(f"{p}/*" for p in _TOKENIZERS)]
    configs += [f"{p}/{c}" for p, c in _CONFIGS.items()]
    dot = f".{variant}" if variant else ""
    folder = Path()
    try:
        for stems, kind in ((WEIGHT_STEMS, "safetensors"), (_BIN_STEMS, "bin")):
            patterns = [f"{part}/{stem}{dot}.{kind}" for part, stem in stems.items()]
            patterns += [f"{part}/{stem}{dot}-*.{kind}" for part, stem in stems.items()]
            patterns += [f"{part}/{stem}.{kind}.index*.json" for part, stem in stems.items()]
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=configs + patterns)
            )
            parts = [part for part in WEIGHT_STEMS if (folder / part).is_dir()]
            if all(weight_files(folder / part, part, variant) for part in parts):
                break
    except (OSError, HFValidationError) as error:  # offline, unknown, gated, wrong revision
        raise UserError(
            f"model {name}: there is no folder of this name, and it could not be fetched from the "
            f"hub ({type(error).__name__}: {_first_line(error)}). Check the spelling and the "
            "revision, or, without a network, copy the model's folder here and give its path"
        ) from error
    return folder


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no details"


def weight_files(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """Return the weight files that `from_pretrained` reads for `part`: one, or index and shards.

    Empty when there are none. safetensors before .bin, as diffusers and transformers choose.
    """
    dot = f".{variant}" if variant else ""
    for stems, kind in ((WEIGHT_STEMS, "safetensors"), (_BIN_STEMS, "bin")):
        single = folder / f"{stems[part]}{dot}.{kind}"
        if single.is_file():
            return [single]
        index = folder / f"{stems[part]}.{kind}.index{dot}.json"
        if index.is_file():
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return [index, *(folder / shard for shard in sorted(shards))]
    return []


def check_parts(folder: Path, parts: Sequence[str] = PARTS, variant: str | None = None) -> None:
    """Raise UserError naming every one of `parts` that the diffusers folder lacks."""
    missing = [INDEX] if INDEX in parts and not (folder / INDEX).is_file() else []
    for part in parts:
        if part in _CONFIGS and not (folder / part / _CONFIGS[part]).is_file():
            missing.append(f"{part}/{_CONFIGS[part]}")
    for part in parts:
        if part not in WEIGHT_STEMS:
            continue
        files = weight_files(folder / part, part, variant)
        missing += [f"{part}/{file.name}" for file in files if not file.is_file()]
        if not files:
            missing.append(f"{part} weights{_other_variants(folder / part, part)}")
    for part in parts:
        if part in _TOKENIZERS:
            missing += _missing_of_tokenizer(folder / part)
    if missing:
        wanted = f" (variant {variant})" if variant else ""
        raise UserError(
            f"base model {folder}{wanted} lacks {', '.join(missing)}; such a folder "
            f"has {', '.join(parts)}: fetch it again, or give another model"
        )


def _missing_of_tokenizer(folder: Path) -> list[str]:
    """Without these files CLIPTokenizer opens with two tokens and no error."""
    if (folder / "tokenizer.json").is_file():
        return []
    names = ("vocab.json", "merges.txt")
    return [f"{folder.name}/{name}" for name in names if not (folder / name).is_file()]


def _other_variants(folder: Path, part: str) -> str:
    """Return a hint on variants that are there: fp16 in `model.fp16.safetensors`."""
    pattern = f"{WEIGHT_STEMS[part]}.*.safetensors"
    found = sorted({path.name.split(".")[1] for path in folder.glob(pattern)})
    return (
        f" (there is variant {', '.join(found)}: name it as the model's variant)" if found else ""
    )


def fingerprint(folder: Path, parts: Sequence[str], variant: str | None = None) -> str:
    """Return the sha256 (hex) over the configs and weight files of `parts`, by name and content.

    Where the folder lies does not matter; a changed byte in any file that is loaded does.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in _files_of(folder / part, part, variant):
            digest.update(f"{part}/{path.name}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files_of(folder: Path, part: str, variant: str | None) -> list[Path]:
    if part == INDEX:
        return [folder]
    if part in _TOKENIZERS:
        names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
        return [folder / name for name in names if (folder / name).is_file()]
    config = [folder / _CONFIGS[part]]
    return config if part == "scheduler" else config + weight_files(folder, part, variant)
