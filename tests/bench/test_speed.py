"""Comparisons: turns, ratios, what is met, and what is kept of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from bench.speed.__main__ import as_record, merged, table
from bench.speed.contenders import fp32_copy, repeated
from bench.speed.growing import anonymous_gib, of_its_own
from bench.speed.measure import Numbers, in_turn, ratio_of, run, seconds_per_step, step_times
from bench.speed.works import Row


def test_contenders_alternate() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], Numbers]:
        return lambda: order.append(name) or {"seconds": float(len(order))}  # type: ignore[func-returns-value]

    found = in_turn({name: contender(name) for name in "ab"}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [numbers["seconds"] for numbers in found["a"]] == [1, 4, 5]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    ours = [{"seconds": 1.0}, {"seconds": 2.0}, {"seconds": 10.0}]
    peer = [{"seconds": 3.0}, {"seconds": 2.0}, {"seconds": 20.0}]
    assert ratio_of(peer, ours, "seconds") == 2.0


@pytest.mark.parametrize(
    ("ratio", "at_least", "met"), [(1.0, True, True), (0.9, True, False), (0.9, False, True)]
)
def test_a_target_is_a_least_or_a_most(ratio: float, at_least: bool, met: bool) -> None:
    assert Row("w", "p", 1, 1, "s", ratio, 1.0, at_least).met is met


def test_new_results_take_the_place_of_old_ones() -> None:
    old = [as_record(Row(work, "peer", 1, 2, "s", 2, 1, True), "old") for work in ("a", "b")]
    new = [as_record(Row("b", "peer", 1, 3, "s", 3, 4, True), "new")]
    both = merged(old, new)
    assert [(one["work"], one["ratio"]) for one in both] == [("a", 2), ("b", 3)]
    last = table(both).splitlines()[-1]
    assert last.startswith("| b | peer | 1 s | 3 s | 3.00 | &ge; 4 | no |")


def test_steps_are_read_from_what_tensorboard_has(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "inner")) as writer:
        for step, when in enumerate((100.0, 200.0, 201.0, 203.0, 204.0)):
            writer.add_scalar("loss", 0.5, step, walltime=when)
            writer.add_scalar("lr", 0.5, step, walltime=0)
    assert step_times(tmp_path) == [100.0, 200.0, 201.0, 203.0, 204.0]
    assert seconds_per_step(tmp_path, 1) == 1.0
    with pytest.raises(SystemExit, match="no step"):
        step_times(tmp_path / "empty")


def test_a_command_that_fails_ends_the_comparison() -> None:
    assert "hello" in run(["echo", "hello"]).output
    with pytest.raises(SystemExit, match="no such file"):
        run(["ls", "no such file"])


def test_memory_is_that_of_the_command() -> None:
    mine = bytearray(600 * 2**20)  # what this process holds does not count
    ran = run(["python3", "-c", "x = bytearray(300 * 2**20)"])
    assert 0.29 < ran.peak_gib < 0.45 and mine


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_mapped_files_do_not_count_as_memory(tmp_path: Path) -> None:
    file = tmp_path / "zeros"
    file.write_bytes(bytes(200 * 2**20))
    code = (
        f"import mmap, time; file = open({str(file)!r}, 'rb');"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(mapped[::4096]);"
        "x = bytearray(b'1') * (100 * 2**20); time.sleep(0.3)"
    )
    ran = run(["python3", "-c", code], watched=True)
    assert 0.09 < anonymous_gib(ran.output) < 0.15 and ran.peak_gib > 0.28


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_a_large_picture_is_decoded_once(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"large{ending}"
    Image.new("RGB", (6000, 4000), (9, 80, 170)).save(file)
    told = of_its_own("decode", file, 512)
    assert told["pixels_gib"] == 6000 * 4000 * 4 / 2**30
    assert told["gib"] < told["pixels_gib"] * (0.5 if ending == ".jpg" else 1.3)


def test_the_base_that_every_contender_can_load(
    tiny_base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import json

    from safetensors.torch import load_file

    made = fp32_copy(tiny_base_folder("eps"), tmp_path)
    for file in made.rglob("*.safetensors"):
        assert {str(tensor.dtype) for tensor in load_file(file).values()} == {"torch.float32"}
    assert json.loads((made / "text_encoder" / "config.json").read_text())["dtype"] == "float32"


def test_pictures_are_repeated_in_turn(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for number in range(5):
        (tmp_path / "few" / f"{number}.png").write_bytes(bytes([number]))
    made = repeated(tmp_path / "few", tmp_path / "many", 12)
    contents = [file.read_bytes()[0] for file in sorted(made.iterdir())]
    assert contents == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
