"""The short form of `python -m tests.torture`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import torture
from tests.torture import SAVE_EVERY


def test_a_few_kills_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = torture.torture(Path("kept"), kills=3, seed=7, variants=("cached",))
    assert result.differences == []
    assert sum(result.kills.values()) == 3 == len(result.repeated)
    assert max(result.repeated) <= SAVE_EVERY


def test_a_used_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base").mkdir()
    for used in (tmp_path, Path(__file__)):
        with pytest.raises(SystemExit) as end:
            torture.main(["--keep", str(used)])
        assert end.value.code == 2
        assert f"--keep {used} is not an empty folder" in capsys.readouterr().err


def test_a_run_that_hangs_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    (tmp_path / "main.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(torture, "ROOT", tmp_path)
    monkeypatch.setattr(torture, "PATIENCE", 0.5)
    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(subprocess.TimeoutExpired):
        torture.torture(tmp_path / "kept", kills=1, seed=0, variants=("cached",))
    (process,) = started
    assert process.poll() is not None
