"""What is known of picture files: never read for nothing, never stale."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

import ldm.data.ledger as ledger_module
from ldm.data.ledger import NAME, Ledger, digest_of
from ldm.errors import UserError

LONG_AGO = 1_600_000_000


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture that was changed long ago."""
    monkeypatch.setattr(ledger_module, "SETTLED", 0)
    return drawn(tmp_path / "picture.png", 10)


def drawn(path: Path, grey: int) -> Path:
    Image.new("RGB", (12, 9), (grey,) * 3).save(path)
    os.utime(path, (LONG_AGO, LONG_AGO))
    time.sleep(0.02)  # a tick of the clock
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose bytes are read, and those that are decoded."""
    found: list[str] = []

    def spy(name: str, mark: str) -> None:
        original = getattr(ledger_module, name)

        def spied(path: Path, **options: int) -> object:
            found.append(f"{mark} {path.name}")
            return original(path, **options)

        monkeypatch.setattr(ledger_module, name, spied)

    spy("digest_of", "read")
    spy("load_with_size", "decoded")
    return found


def test_a_picture_is_read_once(tmp_path: Path, picture: Path, read: list[str]) -> None:
    for _ in range(2):
        ledger = Ledger(tmp_path / "cache")
        assert ledger.digest(picture) == digest_of(picture)
        ledger.save()
    assert read == ["read picture.png"]
    assert ledger.size(picture) == (12, 9)  # whether it can be decoded nobody knew
    ledger.save()
    assert Ledger(tmp_path / "cache").size(picture) == (12, 9)
    assert read == ["read picture.png", "decoded picture.png", "read picture.png"]


def test_a_replaced_picture_is_noticed(tmp_path: Path, picture: Path) -> None:
    """Of the same name, size in bytes and time of change."""
    ledger = Ledger(tmp_path / "cache")
    before, status = ledger.digest(picture), picture.stat()
    ledger.save()
    drawn(picture, 20)
    now = picture.stat()
    assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert Ledger(tmp_path / "cache").digest(picture) == digest_of(picture) != before
    other = drawn(tmp_path / "other.png", 30)
    other.replace(picture)
    assert Ledger(tmp_path / "cache").digest(picture) == digest_of(picture)


def test_what_was_changed_just_now_is_read_again(
    tmp_path: Path, picture: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SETTLED", 60e9)
    for _ in range(2):
        ledger = Ledger(tmp_path / "cache")
        ledger.digest(picture)
        ledger.save()
    assert read == ["read picture.png"] * 2
    assert not (tmp_path / "cache").exists()


def test_a_damaged_ledger_is_no_ledger(tmp_path: Path, picture: Path) -> None:
    ledger = Ledger(tmp_path / "cache")
    ledger.size(picture)
    ledger.save()
    file = tmp_path / "cache" / NAME
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        assert Ledger(tmp_path / "cache").digest(picture) == digest_of(picture)
    file.write_bytes(content[:-7])
    ledger = Ledger(tmp_path / "cache")
    ledger.size(picture)
    ledger.save()
    assert file.read_bytes() == content  # what was cut off is written over


def test_damaged_and_absent_pictures_are_named_each_time(tmp_path: Path, picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:-40])
    ledger = Ledger(tmp_path / "cache")
    assert ledger.digest(picture)
    for _ in range(2):
        with pytest.raises(UserError, match=r"picture\.png cannot be read"):
            ledger.size(picture)
    with pytest.raises(UserError, match=r"absent\.png does not exist"):
        ledger.digest(tmp_path / "absent.png")


def test_without_a_folder_nothing_is_kept(picture: Path, read: list[str]) -> None:
    ledger = Ledger()
    for _ in range(2):
        assert ledger.digest(picture) == digest_of(picture)
        ledger.save()
    assert read == ["read picture.png"] * 2
