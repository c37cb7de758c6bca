"""What a run leaves on disk: snapshots (many, small) and the resume state (one, complete)."""

from ldm.checkpoint.files import clear_leftovers
from ldm.checkpoint.resume import ResumeIO, ResumePoint, find_resume, set_aside
from ldm.checkpoint.snapshots import (
    chosen_steps,
    find_snapshot,
    has_snapshot,
    list_snapshots,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
)

__all__ = [
    "ResumeIO",
    "ResumePoint",
    "chosen_steps",
    "clear_leftovers",
    "find_resume",
    "find_snapshot",
    "has_snapshot",
    "list_snapshots",
    "load_snapshot",
    "prune_snapshots",
    "save_snapshot",
    "set_aside",
]
