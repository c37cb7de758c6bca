"""What a run leaves on disk: snapshots (many, small) and the resume state (one, complete)."""

from ldm.checkpoint.resume import ResumeIO, ResumePoint, find_resume
from ldm.checkpoint.snapshots import (
    find_snapshot,
    list_snapshots,
    load_snapshot,
    save_snapshot,
)

__all__ = [
    "ResumeIO",
    "ResumePoint",
    "find_resume",
    "find_snapshot",
    "list_snapshots",
    "load_snapshot",
    "save_snapshot",
]
