"""Shared by the tests of single files."""

from collections.abc import Callable

import pytest

from tests.models.files.kinds import Written


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Give `written(kind)` -> a tiny model and its single file; read only."""
    made: dict[str, Written] = {}

    def of(kind: str) -> Written:
        if kind not in made:
            made[kind] = Written(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return of
