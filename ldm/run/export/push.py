"""Upload of an exported model to the Hugging Face hub."""

from pathlib import Path

from ldm.errors import UserError
from ldm.models.folder import is_hub_id


def check_name(name: str) -> None:
    """UserError unless it has the form OWNER/NAME."""
    if not is_hub_id(name):
        raise UserError(f"--push {name}: must be OWNER/NAME, as on the hub")


def push(exported: Path, name: str) -> str:
    """Upload a folder or a file into the hub model `name`, made where there is none; its address.

    UserError: no network, no right to write there. The export stays where it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        if exported.is_dir():
            api.upload_folder(repo_id=name, folder_path=exported)
        else:
            api.upload_file(repo_id=name, path_or_fileobj=exported, path_in_repo=exported.name)
    except (OSError, ValueError) as error:  # those of the hub's client are OSErrors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--push {name}: not uploaded ({reason[0]}); {exported} is written. Is HF_TOKEN a "
            "token that may write there?"
        ) from error
    return str(address)
