"""Strict loading of a network that diffusers or transformers saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.errors import UserError


def load_weights(
    kind: Callable[..., Any],
    folder: Path,
    variant: str | None = None,
    what: str = "base model part",
    harmless: str = "position_ids",
    **options: Any,
) -> Any:
    """Load a network of class `kind` strictly and return it in eval mode.

    harmless: saved tensors with this in their name may be left over. options: more arguments of
    the library's `from_pretrained`. UserError, naming `what` and folder: the weights are damaged,
    or do not fit config.json exactly.
    """
    from_pretrained = kind.from_pretrained  # type: ignore[attr-defined]
    try:
        model, info = from_pretrained(
            folder, variant=variant, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(
            f"{what} {folder} cannot be loaded ({type(error).__name__}: {error}); "
            "it may be damaged: fetch it again"
        ) from error
    wrong = [
        f"{problem} {sorted(map(str, keys))[:3]}"
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        # position_ids: a constant of CLIP's that older transformers saved; it is no weight.
        if (keys := [key for key in info[problem] if harmless not in str(key)])
    ]
    if wrong:
        raise UserError(f"{what} {folder}: weights and config.json do not fit ({'; '.join(wrong)})")
    return model.eval()
