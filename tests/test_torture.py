"""The short form of `python -m tests.torture`."""

from pathlib import Path

from tests.torture import SAVE_EVERY, torture


def test_a_few_kills_change_no_byte(tmp_path: Path) -> None:
    result = torture(tmp_path, kills=3, seed=7, variants=("cached",))
    assert result.differences == []
    assert sum(result.kills.values()) == 3 == len(result.repeated)
    assert max(result.repeated) <= SAVE_EVERY
