"""Where a step's time goes: nested parts count once, and the table accounts for the whole step."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.training.profile import PARTS, Profile, Stopwatch, untimed
from tests.training.job import train
from tests.workspace import Workspace


def test_parts_inside_others_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 4.0, 4.5, 10.0])
    watch = Stopwatch(torch.device("cpu"))
    monkeypatch.setattr(watch, "now", lambda: next(clock))
    with watch("optimizer"):  # from 0 to 10
        with watch("UNet"):  # from 1 to 3
            pass
        with watch("backward"):  # from 4 to 4.5
            pass
    assert watch.seconds == {"UNet": 2.0, "backward": 0.5, "optimizer": 7.5}


def test_table_and_trace(
    tiny_base_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profile, "TIMED", 2)
    extra = (Profile(tmp_path, 2),)
    module, *_ = train(tmp_path, tiny_base_folder("eps"), 6, extra=extra, precision="fp32")
    text = (tmp_path / "profile.md").read_text()
    told = dict(re.findall(r"^\| \**([\w ]+?)\** \| ([\d.]+) \|", text, re.MULTILINE))
    assert set(told) == (set(PARTS) | {"step"}) - {"frozen base"}
    parts = {name: float(told[name]) for name in told if name != "step"}
    assert sum(parts.values()) == pytest.approx(float(told["step"]), rel=0.02)
    for name in ("text encoder", "UNet", "backward", "optimizer"):
        assert parts[name] > 0
    with gzip.open(tmp_path / "profile.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("UNet") == 2 * 2, "two steps of two micro-batches"
    assert module.part is untimed, "nobody times on"


def test_too_few_steps(
    tiny_base_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path, tiny_base_folder("eps"))
    assert workspace.main("profile=true", training__steps=16) == 2
    assert "profile=true" in (said := capsys.readouterr().err) and "at least 17" in said
