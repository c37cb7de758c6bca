"""What an exported model says of itself: identifier, base, recipe, numbers."""

import json
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import read_json
from ldm.export.folder import ABOUT
from ldm.models.files.single_file import ABOUT as KEY
from ldm.models.files.weights_file import open_weights


def read_about(source: str | Path) -> dict[str, Any]:
    """Of a folder its dreambooth.json, of a file what its metadata hold; empty where there is none.

    UserError: a file that is no model's.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return dict(json.loads(open_weights(path).metadata.get(KEY, "{}")))
    return dict(read_json(path / ABOUT) or {})
