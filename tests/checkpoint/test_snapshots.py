"""Snapshots: what they hold, how damage is found, which one is meant."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.checkpoint import find_snapshot, list_snapshots, load_snapshot, save_snapshot
from ldm.errors import UserError


def parts(value: float = 1.0) -> dict[str, nn.Module]:
    modules = {"unet": nn.Conv2d(2, 2, 3), "text_encoder": nn.Linear(3, 2)}
    for module in modules.values():
        for parameter in module.parameters():
            layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
            parameter.data = torch.full_like(parameter, value, memory_format=layout)
    return modules


def test_round_trip(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, parts(2.0), {"seed": 3}, 400)
    assert path == tmp_path / "step-000400"
    assert {file.name for file in path.iterdir()} == {
        "unet.safetensors",
        "text_encoder.safetensors",
        "manifest.json",
    }
    assert load_file(path / "unet.safetensors").keys() == {"weight", "bias"}
    modules = parts(0.0)
    manifest = load_snapshot(path, modules)
    assert manifest["step"] == 400 and manifest["config"] == {"seed": 3}
    assert all((p == 2).all() for module in modules.values() for p in module.parameters())


def test_what_was_not_trained_stays(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, {"unet": parts(2.0)["unet"]}, {}, 1)
    modules = parts(5.0)
    load_snapshot(path, modules)
    assert all((p == 5).all() for p in modules["text_encoder"].parameters())


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_snapshot(tmp_path, parts(1.0), {}, 1)
    (tmp_path / ".step-000002.staging").mkdir()  # left by a process that died
    for step in (1, 2):
        path = save_snapshot(tmp_path, parts(2.0), {}, step)
    assert (load_file(path / "unet.safetensors")["bias"] == 2).all()
    assert list(list_snapshots(tmp_path)) == [1, 2]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "no manifest"])
def test_damage_is_found_before_anything_is_loaded(tmp_path: Path, how: str) -> None:
    path = save_snapshot(tmp_path, parts(2.0), {}, 1)
    file = path / "text_encoder.safetensors"
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "no manifest":
        (path / "manifest.json").write_text("{")
    else:
        content[-1] ^= 1
        file.write_bytes(content if how == "flipped" else content[:-1])
    modules = parts(0.0)
    with pytest.raises(UserError, match="manifest" if how == "no manifest" else "text_encoder"):
        load_snapshot(path, modules)
    assert all((p == 0).all() for module in modules.values() for p in module.parameters())


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, parts(), {}, 1)
    with pytest.raises(UserError, match="does not fit"):
        load_snapshot(path, {**parts(), "unet": nn.Conv2d(2, 4, 3)})
    with pytest.raises(UserError, match="holds text_encoder"):
        load_snapshot(path, {"unet": parts()["unet"]})


def test_which_snapshot_is_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with pytest.raises(UserError, match="no snapshot"):
        find_snapshot(tmp_path, "last")
    for step in (1000000, 100, 200):
        save_snapshot(tmp_path / "snapshots", {}, {}, step)
    assert find_snapshot(tmp_path, "last").name == "step-1000000"
    assert find_snapshot(tmp_path, "best").name == "step-1000000"
    assert "taking the last" in caplog.text
    assert find_snapshot(tmp_path, 100) == find_snapshot(tmp_path, "100")
    for chosen, name in ((200, "step-000200"), (None, "step-1000000")):
        (tmp_path / "evaluation.json").write_text(json.dumps({"chosen": chosen}))
        assert find_snapshot(tmp_path, "best").name == name
    for wrong in ("300", "beast"):
        with pytest.raises(
            UserError, match=rf"'{wrong}'.*100, 200, 1000000, and 'last' and 'best'"
        ):
            find_snapshot(tmp_path, wrong)


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_snapshot(tmp_path / "file", parts(), {}, 1)
