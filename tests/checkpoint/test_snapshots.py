"""Snapshots: what they hold, how damage is found, which one is meant."""

import io
import json
import random
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file
from torch import nn

from ldm.checkpoint import (
    clear_leftovers,
    find_snapshot,
    list_snapshots,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
)
from ldm.checkpoint.files import discard
from ldm.checkpoint.tensors import NAMES, tensor_bytes, write_tensors
from ldm.errors import UserError
from tests.checkpoint.killing import dies_at, forks


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


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "unreadable", "no manifest"])
def test_damage_is_found_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    path = save_snapshot(tmp_path, parts(2.0), {}, 1)
    file = path / "text_encoder.safetensors"
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "no manifest":
        (path / "manifest.json").write_text("{")
    elif how == "unreadable":
        failing = OSError(5, "Input/output error: text_encoder")
        monkeypatch.setattr("ldm.checkpoint.snapshots.sha256_of", Mock(side_effect=failing))
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
    with pytest.raises(UserError, match=f"no snapshot; .*python main.py --resume {tmp_path}$"):
        find_snapshot(tmp_path, "last")
    for step in (1000000, 100, 200):
        save_snapshot(tmp_path / "snapshots", parts(), {}, step)
    assert find_snapshot(tmp_path, "last").name == "step-1000000"
    assert find_snapshot(tmp_path, "best").name == "step-1000000"
    assert "taking the last" in caplog.text
    assert find_snapshot(tmp_path, 100) == find_snapshot(tmp_path, "100")
    for chosen, name in ((200, "step-000200"), (None, "step-1000000")):
        (tmp_path / "evaluation.json").write_text(json.dumps({"chosen": chosen}))
        assert find_snapshot(tmp_path, "best").name == name
    (tmp_path / "evaluation.json").write_text(json.dumps({"chosen": 300}))
    assert find_snapshot(tmp_path, "best").name == "step-1000000"
    assert "step 300, is gone" in caplog.text
    for wrong in ("300", "beast"):
        with pytest.raises(
            UserError, match=rf"'{wrong}'.*100, 200, 1000000, and 'last' and 'best'"
        ):
            find_snapshot(tmp_path, wrong)


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_snapshot(tmp_path / "file", parts(), {}, 1)


# --- averaged weights -----------------------------------------------------------------------------


def test_averaged_weights_lie_beside_the_weights(tmp_path: Path) -> None:
    averaged = {"unet": {"weight": torch.full((2, 2, 3, 3), 7.0)}}  # the bias is not averaged
    path = save_snapshot(tmp_path, parts(2.0), {}, 1, averaged)
    assert load_file(path / "unet.ema.safetensors").keys() == {"weight", "bias"}, "it stands alone"
    assert not (path / "text_encoder.ema.safetensors").exists()
    plain, ema = parts(0.0), parts(0.0)
    load_snapshot(path, plain)
    load_snapshot(path, ema, ema=True)
    assert all((p == 2).all() for module in plain.values() for p in module.parameters())
    assert torch.equal(ema["unet"].state_dict()["weight"], averaged["unet"]["weight"])
    assert (ema["unet"].state_dict()["bias"] == 2).all()
    assert all((p == 2).all() for p in ema["text_encoder"].parameters()), "the plain ones"


def test_averaged_weights_that_are_not_there(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, parts(2.0), {}, 1)
    modules = parts(0.0)
    with pytest.raises(UserError, match="step-000001 has no averaged weights"):
        load_snapshot(path, modules, ema=True)
    assert all((p == 0).all() for module in modules.values() for p in module.parameters())
    with pytest.raises(ValueError, match="EMA of unet: the module has no scale"):
        save_snapshot(tmp_path, parts(), {}, 2, {"unet": {"scale": torch.ones(1)}})
    assert list(list_snapshots(tmp_path)) == [1]


# --- damage and death -----------------------------------------------------------------------------


def test_any_file_cut_anywhere_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "snapshots"
    for step in (1, 2):
        newest = save_snapshot(folder, parts(), {"a": 1}, step, {"unet": {}})
    (tmp_path / "evaluation.json").write_text(json.dumps({"chosen": 2}))
    assert len(list(newest.iterdir())) == 4
    for file in newest.iterdir():
        whole = file.read_bytes()
        for offset in (0, *random.Random(file.name).sample(range(len(whole) - 1), 4)):
            file.write_bytes(whole[:offset])
            for which in ("last", "best"):
                caplog.clear()
                assert find_snapshot(tmp_path, which).name == "step-000001"
                assert file.name in caplog.text and "trying step 1" in caplog.text
            with pytest.raises(UserError, match=file.name):
                find_snapshot(tmp_path, 2)
            with pytest.raises(UserError, match=file.name):
                load_snapshot(newest, parts())
        file.unlink()
        assert find_snapshot(tmp_path, "last").name == "step-000001"
        file.write_bytes(whole)
    assert find_snapshot(tmp_path, "last").name == "step-000002"


def test_when_no_snapshot_is_good_each_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        save_snapshot(tmp_path / "snapshots", parts(), {}, step)
    (tmp_path / "snapshots/step-000001/unet.safetensors").write_bytes(b"")
    (tmp_path / "snapshots/step-000002/manifest.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        find_snapshot(tmp_path, "last")
    remedy, second, first = str(caught.value).splitlines()
    assert "step 2, 1 " in remedy and remedy.endswith(f"python main.py --resume {tmp_path}")
    assert "step-000002" in second and "manifest.json" in second
    assert "step-000001/unet.safetensors is damaged" in first


def value_of(path: Path) -> float:
    modules = parts(0.0)
    load_snapshot(path, modules)
    (value,) = {p.flatten()[0].item() for module in modules.values() for p in module.parameters()}
    return value


@forks
def test_dying_while_replacing_leaves_one_or_the_other(tmp_path: Path) -> None:
    folder, call = tmp_path / "snapshots", 0
    save_snapshot(folder, parts(1.0), {}, 5)
    seen = set()
    while dies_at(call, lambda: save_snapshot(folder, parts(2.0), {}, 5)):
        before = value_of(find_snapshot(tmp_path, 5))
        clear_leftovers(tmp_path)
        assert value_of(folder / "step-000005") == before
        assert [path.name for path in folder.iterdir()] == ["step-000005"]
        seen.add(before)
        save_snapshot(folder, parts(1.0), {}, 5)
        call += 1
    assert seen == {1.0, 2.0}
    assert value_of(folder / "step-000005") == 2.0
    assert [path.name for path in folder.iterdir()] == ["step-000005"]


@forks
def test_dying_while_removing_leaves_none_by_half(tmp_path: Path) -> None:
    call, dead = 0, True
    while dead:
        for step in (1, 2, 3):
            save_snapshot(tmp_path / "snapshots", parts(), {}, step)
        dead = dies_at(call, lambda: prune_snapshots(tmp_path / "snapshots", 1, 3))
        for path in list_snapshots(tmp_path / "snapshots").values():
            assert value_of(path) == 1.0
        call += 1
    assert call > 8
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-000003"]


def test_a_half_removed_one_is_not_in_the_way(tmp_path: Path) -> None:
    for name in ("a", ".a.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    discard(tmp_path / "a")
    assert not list(tmp_path.iterdir())


# --- which stay -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "step", "needed", "left"),
    [
        (2, 40, [], [30, 40]),
        (1, 40, [], [40]),
        (9, 40, [], [0, 10, 20, 30, 40]),
        (2, 40, [10], [10, 30, 40]),
        (1, 40, [40], [40]),
        (1, 20, [], [20, 30, 40]),  # the run went back to an earlier state
        (2, 20, [30], [10, 20, 30, 40]),
    ],
)
def test_which_snapshots_are_kept(
    tmp_path: Path, keep: int, step: int, needed: list[int], left: list[int]
) -> None:
    for at in (0, 10, 20, 30, 40):
        save_snapshot(tmp_path, {}, {}, at)
    prune_snapshots(tmp_path, keep, step, needed)
    assert list(list_snapshots(tmp_path)) == left


# --- the format -----------------------------------------------------------------------------------


def test_the_library_reads_what_is_written() -> None:
    values = torch.arange(24).reshape(2, 3, 4)
    tensors = {str(dtype): values.to(dtype) for dtype in NAMES}
    tensors |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": values.mT,
        "part": values[:, 1:, ::2],
        "needs grad": torch.ones(3, requires_grad=True),
        "tied": values,
    }
    file = io.BytesIO()
    write_tensors(file, tensors)
    read = load(file.getvalue())
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    assert tensor_bytes(tensors) == sum(tensor.nbytes for tensor in read.values())


def test_it_is_marked_as_pytorchs(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, parts(), {}, 1)
    with safe_open(path / "unet.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_is_written_is_not_copied_as_a_whole() -> None:
    """64 MiB in another layout than the file's take less than 16 MiB while they are written."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("the system does not tell how much memory a process has")

    def mebibytes() -> float:
        return int(status.read_text().split()[1]) * 4096 / 2**20

    class Nowhere(io.BytesIO):
        most = 0.0

        def write(self, data: object) -> int:
            self.most = max(self.most, mebibytes())
            return 0

    tensors = {str(n): torch.ones(1024, 512).T for n in range(32)}
    file, before = Nowhere(), mebibytes()
    write_tensors(file, tensors)
    assert file.most - before < 16


def test_a_full_disk_leaves_the_snapshot_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_snapshot(tmp_path, parts(1.0), {}, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.checkpoint.tensors.json.dumps", full)
    with pytest.raises(UserError, match="cannot write .*step-000001: No space left"):
        save_snapshot(tmp_path, parts(2.0), {}, 1)
    monkeypatch.undo()
    assert value_of(path) == 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]
