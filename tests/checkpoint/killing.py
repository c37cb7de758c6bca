"""Dying in the middle of saving, at every place where something changes on the disk."""

import os
from collections.abc import Callable
from typing import Any

import pytest

CALLS = ("open", "replace", "fsync", "unlink", "rmdir", "mkdir")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process cannot be forked here")


def dies_at(call: int, action: Callable[[], object]) -> bool:
    """Run `action` in a process that dies, as by SIGKILL, before its so manyeth call; did it?"""
    process = os.fork()
    if process == 0:
        left = call

        def dying(original: Callable[..., Any]) -> Callable[..., Any]:
            def function(*arguments: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return original(*arguments, **more)

            return function

        try:
            for name in CALLS:
                setattr(os, name, dying(getattr(os, name)))
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WEXITSTATUS(status) in (0, 9), "the action itself failed"
    return os.WEXITSTATUS(status) == 9
