"""Networks that measure: from a local folder or the hub, or said to be missing."""

from collections.abc import Callable, Sequence
from pathlib import Path

PATIENCE = 10.0  # seconds for the hub's first answer; its client alone would wait for ever


class Missing(Exception):
    """A network that cannot be had here: what it measures is left out, and `reason` reported."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def find(
    name: str,
    source: str | Path,
    files: Sequence[str] = (),
    complete: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """Return the folder that `source`, the value of evaluation.`name`, means.

    source: a local folder, or a hub id ("owner/name"). Of the latter the weights (safetensors,
    where there are some) and `files` are downloaded into the Hugging Face cache on first use;
    once `complete` finds all it needs there, nothing is asked of the network. Missing: there is no
    such folder, and the hub has it not or cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    hub_id = str(source)
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")) or hub_id.endswith("/"):
        raise Missing(name, f"{source}: no such folder; give evaluation.{name} a folder or hub id")
    try:
        return _cached(hub_id, complete) or _downloaded(hub_id, files)
    except Exception as error:  # the hub client raises its own, its transport's and the system's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Missing(
            name,
            f"{hub_id} could not be fetched from the hub ({type(error).__name__}: "
            f"{(lines or ['no details'])[0]}); without a network give its folder as "
            f"evaluation.{name}",
        ) from error


def weight_file(folder: Path) -> Path | None:
    """Return the one file of weights in the folder: safetensors, else .bin, else .pth."""
    for suffix in ("safetensors", "bin", "pth"):
        found = sorted(folder.glob(f"*.{suffix}"))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _cached(hub_id: str, complete: Callable[[Path], bool]) -> Path | None:
    """Return the folder of an earlier download, if all that is needed is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if weight_file(folder) and complete(folder) else None


def _downloaded(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    siblings = HfApi().model_info(hub_id, timeout=PATIENCE).siblings or []
    there = {sibling.rfilename for sibling in siblings}
    weights = next((f for f in ("model.safetensors", "pytorch_model.bin") if f in there), None)
    if weights is None:
        raise FileNotFoundError("it has neither model.safetensors nor pytorch_model.bin")
    return Path(snapshot_download(hub_id, allow_patterns=[*files, weights]))
