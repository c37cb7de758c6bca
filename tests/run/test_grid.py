"""scripts/grid.py: cells, the order of models, going on, scores."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import scripts.sample
from ldm.config import load_config, to_yaml
from ldm.errors import UserError
from ldm.run.drawing.ready import make_ready
from ldm.run.grid.axes import Axis, cells_of, check_axes, parse_axis
from ldm.sampling.metadata import read_settings
from scripts.grid import main
from tests.workspace import Workspace, evaluated

TinyFolder = Callable[[str], Path]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each model that was loaded is: its snapshot, and its adapter's weight."""
    made: list[str] = []

    def counted(args: Any, count: int) -> Any:
        made.append(f"{args.snapshot} {args.adapter_weight}")
        return make_ready(args, count)

    monkeypatch.setattr("ldm.run.grid.draw.make_ready", counted)
    return made


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def drawn(out: Path, *words: object) -> dict[str, bytes]:
    """Run the script; its cells."""
    assert main([*map(str, words), "--out", str(out), "--device", "cpu", "--steps", "2"]) == 0
    return {path.name: path.read_bytes() for path in sorted((out / "cells").iterdir())}


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_axes() -> None:
    assert parse_axis("--x", "scale=1, 2.5") == Axis("scale", (1.0, 2.5))
    assert parse_axis("--x", "seed=1-3,7").values == (1, 2, 3, 7)
    assert parse_axis("--x", "seed=5").values == (5,)
    assert parse_axis("--x", 'prompt="a, b",c').values == ("a, b", "c")
    assert parse_axis("--x", "snapshot=300,last").labels == ["snapshot 300", "snapshot last"]
    axes = [Axis("seed", (1, 2)), Axis("snapshot", ("1", "2")), Axis("prompt", ("a", "b"))]
    cells = cells_of(axes)
    assert [cell.weights[0] for cell in cells] == ["1"] * 4 + ["2"] * 4
    assert cells[1].name == "x1-y0-z0" and len({cell.place for cell in cells}) == 8
    for text in ("colour=1", "scale", "scale=a", "scale=1,,2", "scale=1,1", "sampler=x", "seed=-1"):
        with pytest.raises(UserError):
            parse_axis("--x", text)
    with pytest.raises(UserError, match="does not hold 'a'"):
        check_axes(axes, "the dog")
    with pytest.raises(UserError, match="two axes are of one kind"):
        check_axes([axes[0], axes[0]], "a dog")


def test_only_what_is_missing_is_drawn(
    tiny_base_folder: TinyFolder, tmp_path: Path, loads: list[str]
) -> None:
    out = tmp_path / "grid"
    words = ["--model", tiny_base_folder("v"), "--prompt", "a dog", "--x", "sampler=ddim,euler_a"]
    words += ["--y", "prompt=dog,robot", "--z", "scale=1,3", "--seed", "4", "--n", "2"]
    first = drawn(out, *words)
    assert len(first) == 16 and len(loads) == 1
    (out / "cells" / "x0-y0-z0-seed4.png").unlink()
    (out / "cells" / "x1-y1-z1-seed5.png").write_bytes(b"half")
    untouched = out / "cells" / "x1-y0-z0-seed4.png"
    before = untouched.stat().st_mtime_ns
    assert drawn(out, *words).keys() == first.keys()
    assert untouched.stat().st_mtime_ns == before and len(loads) == 2
    again = out / "cells" / "x1-y1-z1-seed5.png"
    told = read_settings(again)
    assert {
        "prompt": "a robot",
        "scale": 3.0,
        "sampler": "euler_a",
        "seed": 5,
    }.items() <= told.items()
    drawn(out, *words, "--negative", "snow")  # another setting: all of them
    assert untouched.stat().st_mtime_ns > before
    assert read_settings(untouched)["negative"] == "snow"
    rows = table_of(out)
    assert len(rows) == 16 and rows[0]["axis/sampler"] == "ddim" and "identity" not in rows[0]
    assert read_settings(out / "sheet.png")["axes"]["scale"] == [1.0, 3.0]
    sample = ["--model", str(tiny_base_folder("v")), "--prompt", "a robot", "--negative", "snow"]
    sample += ["--scale", "3", "--sampler", "euler_a", "--steps", "2", "--seed", "4", "--n", "2"]
    assert scripts.sample.main([*sample, "--out", str(tmp_path / "s"), "--device", "cpu"]) == 0
    assert np.array_equal(pixels(tmp_path / "s" / "00001-seed5.png"), pixels(again))


def test_a_run_with_an_adapter(
    tiny_base_folder: TinyFolder, tmp_path: Path, loads: list[str]
) -> None:
    work = Workspace(tmp_path, tiny_base_folder("v"))
    run = work.train("grid", adapter__rank=2, training__learning_rate=0.1)
    told = [f"{key}={value}" for key, value in evaluated(tmp_path).items()]
    config = load_config([run / "config.yaml"], told)  # the run's own end was not measured
    (run / "config.yaml").write_text(to_yaml(config), "utf-8")
    out = tmp_path / "grid"
    words = ["--run", run, "--prompt", "a [V] robot", "--x", "seed=1,2", "--y", "adapter=0,0.5,1"]
    words += ["--z", "snapshot=1,2"]
    first = drawn(out, *words)
    assert len(first) == 12 and len(loads) == 6 == len(set(loads))
    drawn(out, *words)
    assert len(loads) == 6  # all are there: no model is loaded
    cells = {name: pixels(out / "cells" / name) for name in first}
    assert np.array_equal(cells["x0-y0-z0-seed1.png"], cells["x0-y0-z1-seed1.png"])  # weight 0
    assert np.abs(cells["x0-y1-z1-seed1.png"] - cells["x0-y2-z1-seed1.png"]).max() > 0
    assert np.abs(cells["x0-y0-z1-seed1.png"] - cells["x0-y2-z1-seed1.png"]).max() > 0
    plain = ["--model", str(tiny_base_folder("v")), "--prompt", "a sks robot", "--n", "1"]
    plain += ["--seed", "1", "--steps", "2", "--out", str(tmp_path / "s"), "--device", "cpu"]
    assert scripts.sample.main(plain) == 0
    untouched = pixels(tmp_path / "s" / "00000-seed1.png")
    assert np.abs(cells["x0-y0-z0-seed1.png"] - untouched).max() <= 1
    half = out / "cells" / "x1-y1-z1-seed2.png"
    again = ["--from-png", str(half), "--out", str(tmp_path / "again"), "--device", "cpu"]
    assert scripts.sample.main(again) == 0
    assert np.array_equal(pixels(tmp_path / "again" / "00000-seed2.png"), pixels(half))
    rows = table_of(out)
    assert {row["identity"] for row in rows} <= {"0", "1"}
    assert all(-1 <= float(row["fidelity/oracle"]) <= 1.001 for row in rows)
    assert {row["read/light"] for row in rows} <= {"bright", "dark"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--x", "snapshot=1,2"], "needs --run"),
        (["--x", "adapter=0,1"], "needs --lora"),
        (["--x", "scale=1,2", "--scale", "3"], "--scale beside an axis of it"),
        (["--x", "prompt=cat,dog"], "does not hold 'cat'"),
        (["--x", "steps=0,2"], "steps: 0"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    tiny_base_folder: TinyFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["--model", str(tiny_base_folder("v")), "--prompt", "a dog", "--out", str(tmp_path)]
    assert main([*base, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--x", "seed=1", "--z", "steps=1,2"], ["--x", "seed=1"]])
def test_incomplete_command_line(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "x", "--prompt", "a", *words])
