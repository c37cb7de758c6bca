"""Errors that the user can mend, and how a command reports them."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)


class UserError(ValueError):
    """The user's input is wrong: the message names the file or key, its value and the remedy."""


@contextlib.contextmanager
def explain_disk_errors(
    what: Path | str, remedy: str = "free some space or choose another folder"
) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a UserError that names the place."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what}: {error.strerror or error}; {remedy}") from error


def exit_status(command: Callable[[], object]) -> int:
    """Run `command` and return its exit status: 0 done, 2 wrong input (one message, no traceback).

    Any other exception propagates, so that Python prints its traceback and exits with 1.
    """
    try:
        command()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
