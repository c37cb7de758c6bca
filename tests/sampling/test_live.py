"""Live class images: a function of seed and turn, whoever makes them and whenever."""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageOps

from ldm.data.dataset import Sample
from ldm.data.encoding import encode_pixels
from ldm.data.images import load_picture, to_tensor
from ldm.errors import UserError
from ldm.models.base import BaseModel, frozen_copy, load_base
from ldm.randomness import generator
from ldm.sampling.live import LiveClassImages, Ring
from ldm.sampling.prior import ClassImageMaker, class_image_settings, make_class_images

PROMPT = "a drawing of a robot"
SEED, COUNT, BATCH, STEP = 11, 6, 4, 2  # STEP: samples per optimizer step
Open = Callable[..., LiveClassImages]


@pytest.fixture(scope="module")
def base(tiny_base_folder: Callable[[str], Path]) -> BaseModel:
    return frozen_copy(load_base(tiny_base_folder("v")))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every batch that is sampled: name of the thread, number."""
    seen: list[tuple[str, int]] = []
    original = ClassImageMaker.make

    def spy(maker: ClassImageMaker, number: int) -> Any:
        seen.append((threading.current_thread().name, number))
        return original(maker, number)

    monkeypatch.setattr(ClassImageMaker, "make", spy)
    return seen


def maker_of(base: BaseModel, **changes: Any) -> ClassImageMaker:
    plain = {"seed": 3, "scale": 2.0, "steps": 2, "sampler": "euler_a", "size": 32}
    settings: dict[str, Any] = plain | changes
    return ClassImageMaker(base, PROMPT, class_image_settings(**settings), BATCH)


@pytest.fixture
def live(base: BaseModel) -> Iterator[Open]:
    """Give `live(...)` -> LiveClassImages, closed at the end; settings and arguments mixed."""
    opened: list[LiveClassImages] = []

    def opening(
        count: int = COUNT, uses: int = 2, of: BaseModel = base, steps: int = 2, **own: Any
    ) -> LiveClassImages:
        opened.append(LiveClassImages(maker_of(of, steps=steps), Ring(count, uses), **own))
        return opened[-1]

    yield opening
    for source in opened:
        source.close()


def steps_of(source: LiveClassImages, steps: range) -> list[Sample]:
    return [sample for step in steps for sample in step_of(source, step)]


def step_of(source: LiveClassImages, step: int) -> list[Sample]:
    turns = range(step * STEP, (step + 1) * STEP)
    source.ready(turns)
    return [source.take(SEED, step, turn, 10 + place) for place, turn in enumerate(turns)]


def assert_equal(first: list[Sample], second: list[Sample]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.name == two.name
        assert torch.equal(one.mean, two.mean) and torch.equal(one.std, two.std)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("count", "uses"), [(10, 4), (7, 3), (5, 1), (1, 1), (3, 8)])
def test_ring(count: int, uses: int) -> None:
    ring, served = Ring(count, uses), list[int]()
    for block in range(6 * uses):
        lowest = int(block * count / uses + 1e-9)
        images = [ring.image(SEED, block * count + place) for place in range(count)]
        assert sorted(images) == list(range(lowest, lowest + count))  # each once
        assert ring.window(range(block * count, block * count + 1)) == range(lowest, lowest + count)
        served += images
    assert {served.count(k) for k in range(count, 5 * count)} == {uses}
    assert {served.count(k) for k in range(count)} <= set(range(1, uses + 1))
    spanning = ring.window(range(count - 1, 2 * count + 1))
    assert spanning == range(2 * count // uses + count)


def test_ring_order_is_of_seed_and_block() -> None:
    ring = Ring(20, 1)
    orders = {
        (seed, block): tuple(ring.image(seed, block * 20 + n) - block * 20 for n in range(20))
        for seed in (0, 1)
        for block in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert all(order != tuple(range(20)) for order in orders.values())
    with pytest.raises(UserError, match=r"prior\.count: 0"):
        Ring(0)
    with pytest.raises(UserError, match=r"prior\.uses: 0"):
        Ring(5, 0)


def test_live_images_are_the_cached_ones(
    base: BaseModel, tiny_base_folder: Callable[[str], Path], tmp_path: Path, live: Open
) -> None:
    own = load_base(tiny_base_folder("v"))
    settings = class_image_settings(3, 2, 2, "euler_a", own.default_resolution)
    paths = make_class_images(ClassImageMaker(own, PROMPT, settings, BATCH), 9, tmp_path)
    source, seen = live(mirror=True), set()
    for step in range(6):
        for place, sample in enumerate(step_of(source, step)):
            assert (sample.prompt, sample.mask, sample.weight) == (PROMPT, None, 1.0)
            assert sample.sizes.tolist() == [32, 32, 0, 0, 32, 32]
            image = Ring(COUNT, 2).image(SEED, step * STEP + place)
            assert sample.name == f"class {image:05d}"
            draw = generator(SEED, "variant", step, 10 + place)
            flip = int(torch.randint(2, (), generator=draw))
            picture = load_picture(paths[image])
            both = torch.stack([to_tensor(picture), to_tensor(ImageOps.mirror(picture))])
            mean, std = encode_pixels(base.vae, both)
            assert torch.equal(sample.mean, mean[flip])
            assert torch.equal(sample.std, std[flip])
            seen.add((image, flip))
    assert {image for image, _ in seen} == set(range(9))
    assert {flip for _, flip in seen} == {0, 1}
    assert sample.mean.is_contiguous() and not sample.mean.requires_grad
    assert not torch.equal(mean[0], mean[1])  # or mirroring would show nowhere


def test_resumed_run_makes_what_it_needs_and_goes_on(
    live: Open, made: list[tuple[str, int]]
) -> None:
    source = live()
    whole = steps_of(source, range(14))
    source.close()
    made.clear()
    later = live()
    later.ready(range(16, 18))  # block 2, of images 6 to 11
    assert sorted(later._kept) == list(range(6, 12))
    assert_equal(steps_of(later, range(8, 14)), whole[8 * STEP :])
    later.close()
    assert min(number for _, number in made) == 6 // BATCH
    assert [number for _, number in made] == list(range(1, 1 + len(made)))


def test_ahead_by_one_block_and_no_more(live: Open, made: list[tuple[str, int]]) -> None:
    source = live(count=12, uses=3)  # 4 new images per block
    source.ready(range(2))
    until(lambda: len(made) == 4)  # block 1 ends with image 15
    time.sleep(0.2)
    assert made == [("class images", number) for number in range(4)]
    for block in range(1, 6):
        source.ready(range(12 * block, 12 * block + 2))
        until(lambda block=block: len(source._made) == 1)  # type: ignore[misc]
        assert len(source._kept) + BATCH * len(source._made) <= 12 + 4 + BATCH
        assert sorted(source._kept) == list(range(4 * block, 4 * block + 12))
        assert len(made) == 4 + block
    source.ready(range(12 * 6 - 1, 12 * 9))  # more turns than a ring has
    assert sorted(source._kept) == list(range(20, 32 + 12))
    for place, turn in enumerate(range(71, 108)):
        source.take(SEED, 0, turn, place)


def test_first_filling_is_reported(live: Open) -> None:
    reports: list[tuple[int, int]] = []
    source = live(report=lambda done, total: reports.append((done, total)))
    source.ready(range(0))  # a step that takes none of this class
    assert not reports
    steps_of(source, range(6))
    assert reports == [(0, 6), (4, 6), (6, 6)]
    reports.clear()
    later = live(report=lambda done, total: reports.append((done, total)))
    later.ready(range(16, 18))
    assert reports == [(0, 6), (2, 6), (6, 6)]  # image 6 is in the middle of batch 1


def test_nothing_depends_on_the_other_thread(
    base: BaseModel, live: Open, made: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = steps_of(live(), range(6))
    state, spy, threads = torch.get_rng_state(), ClassImageMaker.make, list[int]()

    def slow(maker: ClassImageMaker, number: int) -> Any:
        time.sleep(0.05 * (number % 2))
        threads.append(torch.get_num_threads())
        return spy(maker, number)

    monkeypatch.setattr(ClassImageMaker, "make", slow)
    mine = torch.get_num_threads()
    other = threading.Thread(target=torch.set_num_threads, args=(mine + 1,))
    other.start()  # new threads begin with what was set last, anywhere
    other.join()
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            found = steps_of(live(), range(6))
    finally:
        torch.set_num_threads(mine)
    assert_equal(found, wanted)
    assert set(threads) == {mine}
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.training for part in base.unet.modules())
    assert {name for name, _ in made} == {"class images"}


def test_training_the_original_changes_nothing(
    tiny_base_folder: Callable[[str], Path], live: Open
) -> None:
    wanted = steps_of(live(), range(3))
    trained = load_base(tiny_base_folder("v"))
    source = live(of=frozen_copy(trained))
    for part in (trained.unet, trained.text_encoder, trained.vae):
        part.train().requires_grad_(True)
        for weight in part.parameters():
            weight.data.add_(1)
    assert_equal(steps_of(source, range(3)), wanted)


def test_trouble_in_the_thread_reaches_the_step(
    live: Open, monkeypatch: pytest.MonkeyPatch, tiny_base_folder: Callable[[str], Path]
) -> None:
    original = ClassImageMaker.make

    def breaks(maker: ClassImageMaker, number: int) -> Any:
        if number == 2:
            raise MemoryError("the second after the first")
        return original(maker, number)

    monkeypatch.setattr(ClassImageMaker, "make", breaks)
    source = live()
    steps_of(source, range(3))  # images 0 to 5
    for _ in range(2):
        with pytest.raises(MemoryError, match="the second") as caught:
            step_of(source, 3)
        assert "breaks" in [entry.name for entry in caught.traceback]
        assert any(PROMPT in note for note in caught.value.__notes__)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no sampler 'magic'"):
        maker_of(load_base(tiny_base_folder("v")), sampler="magic")
    terminal = load_base(tiny_base_folder("v"))
    terminal.scheduler.register_to_config(rescale_betas_zero_snr=True)
    with pytest.raises(UserError, match="cannot start from pure noise"):
        maker = maker_of(terminal, sampler="plms")
        LiveClassImages(maker, Ring(2)).ready(range(1))


def test_a_thread_that_is_gone_is_not_waited_for(
    live: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveClassImages, "_work", lambda *_: None)
    with pytest.raises(RuntimeError, match="not in this process"):
        live().ready(range(1))


def test_user_stops_while_waiting(live: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    finished: list[Any] = []
    original = ClassImageMaker.make
    monkeypatch.setattr(
        ClassImageMaker, "make", lambda maker, number: finished.append(original(maker, number))
    )

    def check() -> None:
        looks.append(time.monotonic())
        if len(looks) == 4:
            raise KeyboardInterrupt

    source = live(steps=900, check=check)
    with pytest.raises(KeyboardInterrupt):
        source.ready(range(1))
    assert min(b - a for a, b in pairwise(looks)) < 5  # a batch of 900 steps takes far longer
    source.close()
    source.close()
    assert not finished  # ended within the batch
    assert source._thread is not None and not source._thread.is_alive()
    parts = source.maker.base.unet, source.maker.base.vae.encoder, source.maker.base.vae.decoder
    assert not any(part._forward_pre_hooks for part in parts)
    with pytest.raises(RuntimeError, match="after close"):
        source.ready(range(1))


def test_the_process_ends_without_close(tiny_base_folder: Callable[[str], Path]) -> None:
    script = f"""
import time
from ldm.models.base import load_base
from ldm.sampling.live import LiveClassImages, Ring
from ldm.sampling.prior import ClassImageMaker, class_image_settings
base = load_base({str(tiny_base_folder("v"))!r})
maker = ClassImageMaker(base, "a robot", class_image_settings(0, 2.0, 900, "ddim", 32), 4)
def check():
    if base.unet._forward_pre_hooks:  # the thread is at work
        time.sleep(0.5)
        raise SystemExit(3)
LiveClassImages(maker, Ring(4), check=check).ready(range(1))
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, timeout=120, capture_output=True, text=True
    )
    assert ended.returncode == 3, ended.stderr  # not that of an abort


def test_order_of_calls(live: Open) -> None:
    source = live()
    with pytest.raises(ValueError, match="ready"):
        source.take(SEED, 0, 0, 0)
    source.ready(range(24, 26))
    source.ready(range(24, 26))
    with pytest.raises(ValueError, match="turn 2: .* dropped"):
        source.ready(range(2, 4))


class Room:
    """Processes that are threads: what one gives arrives pickled at all."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=30)
        self.owners: list[list[int]] = [[] for _ in range(world)]
        self.content = b""

    def exchange(self, rank: int) -> Callable[[int, Any], Any]:
        def send(owner: int, payload: Any) -> Any:
            self.owners[rank].append(owner)
            if owner == rank:
                self.content = pickle.dumps(payload)
            else:
                assert payload is None
            self.barrier.wait()
            content = self.content
            self.barrier.wait()
            return pickle.loads(content)

        return send


def in_processes(
    world: int, live: Open, base: BaseModel, job: Callable[[LiveClassImages], Any], **own: Any
) -> tuple[list[Any], Room]:
    room = Room(world)
    sources = [
        live(of=frozen_copy(base), rank=rank, world=world, exchange=room.exchange(rank), **own)
        for rank in range(world)
    ]
    with ThreadPoolExecutor(world) as pool:
        jobs = [pool.submit(job, source) for source in sources]
    return [job.exception() or job.result() for job in jobs], room


@pytest.mark.parametrize("start", [0, 8])
def test_processes_share_without_doubles(
    base: BaseModel, live: Open, made: list[tuple[str, int]], start: int
) -> None:
    source = live()
    wanted = steps_of(source, range(start, 12))
    source.close()
    made.clear()
    found, room = in_processes(2, live, base, lambda source: steps_of(source, range(start, 12)))
    for samples in found:
        assert_equal(samples, wanted)
    numbers = sorted(number for _, number in made)
    assert len(numbers) == len(set(numbers)) and numbers[0] == start * STEP // COUNT * 3 // BATCH
    first = numbers[0]
    assert room.owners[0] == room.owners[1] == [(first + n) % 2 for n in range(len(room.owners[0]))]


def test_trouble_in_one_process_reaches_all(
    base: BaseModel, live: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Exception):  # of a function: it cannot be pickled
        pass

    original = ClassImageMaker.make

    def breaks(error: Exception) -> Callable[[ClassImageMaker, int], Any]:
        def make(maker: ClassImageMaker, number: int) -> Any:
            if number == 1:
                raise error
            return original(maker, number)

        return make

    for error, elsewhere in ((UserError("no room"), UserError), (Odd("no room"), RuntimeError)):
        monkeypatch.setattr(ClassImageMaker, "make", breaks(error))
        found, _ = in_processes(2, live, base, lambda source: source.ready(range(1)))
        assert found[1] is error
        assert type(found[0]) is elsewhere and "no room" in str(found[0])


def test_stop_in_one_process_reaches_all(base: BaseModel, live: Open) -> None:
    def check() -> None:
        raise InterruptedError("stop")

    found, _ = in_processes(
        2, live, base, lambda source: source.ready(range(1)), steps=900, check=check
    )
    assert [type(error) for error in found] == [InterruptedError, InterruptedError]
