"""A finished run whose last snapshot is missing or damaged: its resume state holds the weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from ldm.checkpoint import find_snapshot
from ldm.errors import UserError
from tests.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, tiny_base_folder: Callable[[str], Path]) -> Workspace:
    return Workspace(tmp_path, tiny_base_folder("eps"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw"])
def test_it_is_written_again_bit_for_bit(
    place: Workspace,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    optimizer: str,
) -> None:
    run = place.train(
        "done",
        training__optimizer=optimizer,
        ema__schedule="power",
        training__steps=3,
        snapshots__every=3,
    )
    folder = run / "snapshots" / "step-000003"
    whole, state = contents(folder), (run / "resume.ckpt").read_bytes()
    assert len(whole) == 5, "two networks, their averages, the manifest"
    ways: list[Callable[[], object]] = [
        lambda: damage(folder / "unet.safetensors"),
        lambda: damage(folder / "manifest.json"),
        lambda: (folder / "text_encoder.ema.safetensors").unlink(),
        lambda: shutil.rmtree(folder),
        lambda: shutil.rmtree(folder.parent),
    ]
    for spoil in ways:
        spoil()
        with pytest.raises(UserError, match=f"python main.py --resume {run}"):
            find_snapshot(run)
        caplog.clear()
        assert main.main(["--resume", str(run)]) == 0
        assert "snapshot of step 3 is missing or damaged: it is written again" in caplog.text
        assert contents(folder) == whole
        assert [path.name for path in folder.parent.iterdir()] == ["step-000003"]
        assert (run / "resume.ckpt").read_bytes() == state
        capsys.readouterr()
        assert main.main(["--resume", str(run)]) == 0
        assert "is finished" in capsys.readouterr().out


def test_the_damaged_one_stays_until_another_is_whole(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train("done")
    folder = run / "snapshots" / "step-000002"
    damage(folder / "unet.safetensors")
    damaged = contents(folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ldm.checkpoint.snapshots.write_tensors", full)
        assert main.main(["--resume", str(run)]) == 2
    message = capsys.readouterr().err
    assert f"cannot write {folder}: No space left" in message and "steps lost: 0" in message
    assert contents(folder) == damaged
    assert main.main(["--resume", str(run)]) == 0
    assert find_snapshot(run, 2) == folder
