"""Several subjects and classes in one stream: shares, weights, masks, dropped captions, waiting."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ldm.data.dataset import Batch, Pictures, Sample, TrainingSet
from ldm.data.latents import Latents
from ldm.errors import UserError
from ldm.randomness import generator
from tests.data.test_dataset import class_pictures, latents, pictures_of, prompts_of, samples, whole

DEALINGS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]  # accumulate, world


class Recorded:
    """A source that writes down what it is asked, and gives out that."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def ready(self, turns: range) -> None:
        self.calls.append(("ready", list(turns)))

    def take(self, seed: int, step: int, turn: int, index: int) -> Sample:
        self.calls.append(("take", [turn]))
        mean, name = torch.full((4, 2, 3), float(turn)), f"turn {turn} at {step}, {index}"
        return Sample(mean, mean + 0.5, mean.flatten()[:6], "a robot", name)

    def turns(self, kind: str) -> list[int]:
        return [turn for name, turns in self.calls if name == kind for turn in turns]


def three(masked: Sequence[bool] = (False, False, False)) -> list[Pictures]:
    """Three subjects of 2, 7 and 7 pictures, of different weights."""
    counts = (2, 7, 7)
    return [
        pictures_of(
            latents(count, 2, base=100 * n, masked=masked[n]),
            prompts_of(count, f"subject {n}: "),
            weight=1.0 + n,
            number=n,
        )
        for n, count in enumerate(counts)
    ]


def two_classes() -> list[Pictures]:
    return [class_pictures(latents(5, 1, base=1000 + 100 * n), n) for n in range(2)]


def many(**options: Any) -> TrainingSet:
    options = {"batch": 4, "prior_batch": 8, "seed": 7} | options
    return TrainingSet(three(), two_classes(), **options)


def subject_of(name: str) -> int:
    return int(name.removesuffix(".png")) // 100


def test_subjects_get_equal_shares_and_their_pictures_equal_use():
    found = samples(list(islice(whole(many()), 42)))  # 168 subject samples: 56 each, 4 and 28 epochs
    names = [sample[2] for _, sample in sorted(found.items())]
    subjects = [name for name in names if subject_of(name) < 10]
    assert [subject_of(name) for name in subjects] == [0, 1, 2] * 56  # in turn, across steps
    uses = Counter(subjects)
    assert {uses[f"{n}.png"] for n in range(2)} == {28}
    assert {uses[f"{base + n}.png"] for base in (100, 200) for n in range(7)} == {8}
    for number, count in enumerate((2, 7, 7)):
        own = [name for name in subjects if subject_of(name) == number]
        epochs = [own[n : n + count] for n in range(0, 56, count)]
        assert all(len(set(epoch)) == count for epoch in epochs)
    classes = Counter(name for name in names if subject_of(name) >= 10)
    assert len(classes) == 10 and set(classes.values()) <= {33, 34}  # of 336


def test_subjects_of_one_size_are_not_run_through_in_step():
    found = samples(list(islice(whole(many()), 42)))
    names = [sample[2] for _, sample in sorted(found.items())]
    pairs = [
        [int(name.removesuffix(".png")) % 100 for name in names if subject_of(name) == number]
        for number in (1, 2)
    ]
    assert 0 < sum(one == other for one, other in zip(*pairs, strict=True)) < 28  # 8 expected


def test_prompts_and_weights_go_with_their_subject():
    for batch in islice(whole(many()), 10):
        for n, name in enumerate(batch["names"]):
            subject = subject_of(name)
            assert bool(batch["is_prior"][n]) is (subject >= 10)
            assert batch["weight"][n] == (1 if subject >= 10 else 1 + subject)
            picture = int(name.removesuffix(".png")) % 100
            prompts = (
                ["a robot"] if subject >= 10 else prompts_of(7, f"subject {subject}: ")[picture]
            )
            assert batch["prompts"][n] in prompts
        assert batch["weight"].dtype == torch.float32


def test_a_whole_number_is_a_weight_too():
    (batch,) = next(iter(TrainingSet([pictures_of(latents(1, 1, 0), [["x"]], weight=2)])))
    assert batch["weight"].dtype == torch.float32 and batch["weight"].tolist() == [2.0]


def dealt(accumulate: int, world: int, steps: int = 6, **options: Any) -> list[list[Batch]]:
    """The batches of each process."""
    return [
        list(
            islice(
                whole(many(accumulate=accumulate, world=world, rank=rank, **options)),
                steps * accumulate,
            )
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize(("accumulate", "world"), DEALINGS)
def test_same_samples_in_the_same_order_however_they_are_dealt_out(accumulate, world):
    expected = samples(list(islice(whole(many(caption_dropout=0.3)), 6)))
    processes = dealt(accumulate, world, caption_dropout=0.3)
    assert samples([batch for batches in processes for batch in batches]) == expected
    for step in range(6):  # micro-batches in turn, processes in turn: contiguous shares
        parts = range(step * accumulate, (step + 1) * accumulate)
        order = [batches[part]["index"].tolist() for part in parts for batches in processes]
        assert sum([[one for one in own if one < 4] for own in order], []) == list(range(4))
        assert sum([[one for one in own if one >= 4] for own in order], []) == list(range(4, 12))
        assert {len(own) for own in order} == {12 // (accumulate * world)}
        assert all(own == sorted(own) for own in order)


@pytest.mark.parametrize("start", [1, 2, 5])
def test_resumed_stream_goes_on_where_it_stopped(start):
    straight = samples(list(islice(whole(many(caption_dropout=0.3)), 8)))
    rest = samples(list(islice(whole(many(caption_dropout=0.3, start_step=start)), 8 - start)))
    assert rest == {where: sample for where, sample in straight.items() if where[0] >= start}


def test_two_workers_give_the_same_stream():
    found = TrainingSet(
        three(masked=(True, False, True)), two_classes(), batch=4, prior_batch=8, accumulate=2
    )
    loader = DataLoader(found, None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for one, other in zip(islice(whole(loader), 8), whole(found), strict=False):
        assert set(one) == set(Batch.__annotations__)
        for key, value in other.items():
            found_value = dict(one)[key]
            if isinstance(value, torch.Tensor):
                assert isinstance(found_value, torch.Tensor)
                assert torch.equal(found_value, value), key
            else:
                assert found_value == value, key


# --- readiness


@pytest.mark.parametrize(("accumulate", "world"), DEALINGS)
@pytest.mark.parametrize("start", [0, 3])
def test_every_source_is_readied_once_a_step_before_it_is_asked(accumulate, world, start):
    taken: list[list[int]] = [[], [], []]
    for rank in range(world):
        sources = [Recorded() for _ in range(3)]
        options: dict[str, Any] = {"accumulate": accumulate, "world": world, "rank": rank}
        stream = TrainingSet(sources, batch=4, start_step=start, **options)
        for _ in islice(stream, 6 * accumulate):
            pass
        for number, source in enumerate(sources):
            readied = [turns for name, turns in source.calls if name == "ready"]
            # the same in every process: those of the step's places that are this source's
            assert readied == [
                [q // 3 for q in range(4 * step, 4 * step + 4) if q % 3 == number]
                for step in range(start, start + 6)
            ]
            latest: list[int] = []
            for name, turns in source.calls:
                if name == "ready":
                    latest = turns
                else:
                    assert turns and set(turns) <= set(latest)
            taken[number] += source.turns("take")
    for number, turns in enumerate(taken):  # each once over all processes
        places = range(4 * start, 4 * (start + 6))
        assert sorted(turns) == [q // 3 for q in places if q % 3 == number]


def test_a_source_that_a_step_does_not_take_of_is_readied_for_nothing():
    subjects, classes = [Recorded(), Recorded()], [Recorded()]
    list(islice(TrainingSet(subjects, classes, batch=1, prior_batch=2), 4))
    assert subjects[1].calls == [
        ("ready", []),
        ("ready", [0]),
        ("take", [0]),
        ("ready", []),
        ("ready", [1]),
        ("take", [1]),
    ]
    assert classes[0].turns("ready") == classes[0].turns("take") == list(range(8))


def test_iterating_again_readies_again_and_so_does_a_micro_batch_by_itself():
    source = Recorded()
    stream = TrainingSet([source], batch=2, accumulate=2)
    for _ in range(2):
        next(iter(stream))
    assert source.turns("ready") == [0, 1, 0, 1]
    stream.micro_batch(5, 1)
    stream.micro_batch(5, 0)
    assert source.calls[-3:] == [("ready", [10, 11]), ("take", [11]), ("take", [10])]


def test_a_source_knows_step_and_place_of_what_it_gives():
    stream = TrainingSet([pictures_of(latents(1, 1, 0), [["x"]])], [Recorded()], prior_batch=2)
    names = [name for batch in islice(whole(stream), 2) for name in batch["names"] if "turn" in name]
    assert names == ["turn 0 at 0, 1", "turn 1 at 0, 2", "turn 2 at 1, 1", "turn 3 at 1, 2"]


# --- masks


def test_masks_are_those_of_picture_and_variant_and_ones_where_there_are_none():
    stream = TrainingSet(three(masked=(True, False, True)), two_classes(), batch=6, prior_batch=4)
    for batch in islice(whole(stream), 10):
        mask = batch["mask"]
        assert mask is not None and mask.shape == (10, 1, 2, 3) and mask.dtype == torch.float32
        for n, name in enumerate(batch["names"]):
            masked = subject_of(name) in (0, 2)
            expected = batch["mean"][n, :1] / 100 if masked else torch.ones(1, 2, 3)
            assert torch.equal(mask[n], expected)


@pytest.mark.parametrize(("accumulate", "world"), DEALINGS)
def test_a_sample_has_its_mask_in_whatever_company(accumulate, world):
    subjects = [pictures_of(latents(5, 2, base=100, masked=True), prompts_of(5))]
    for rank in range(world):
        options: dict[str, Any] = {"accumulate": accumulate, "world": world, "rank": rank}
        stream = TrainingSet(subjects, two_classes(), batch=4, prior_batch=8, **options)
        for batch in islice(whole(stream), 4):
            assert batch["mask"] is not None
            values = torch.where(batch["is_prior"], 1.0, batch["mean"][:, 0, 0, 0] / 100)
            assert torch.equal(batch["mask"][:, 0, 1, 2], values)


def test_latents_refuse_masks_that_do_not_fit():
    plain = latents(3, 2, base=0)
    for shape in [(3, 2, 4, 2, 3), (3, 1, 1, 2, 3), (2, 2, 1, 2, 3), (3, 2, 1, 4, 6)]:
        with pytest.raises(ValueError, match="masks"):
            Latents(plain.mean, plain.std, plain.sizes, plain.names, [*torch.ones(shape)])
    with pytest.raises(ValueError, match="2 names"):
        Latents(plain.mean, plain.std, plain.sizes, plain.names[:2])
    with pytest.raises(ValueError, match="std"):
        Latents(plain.mean, [std[:1] for std in plain.std], plain.sizes, plain.names)
    with pytest.raises(ValueError, match="sizes"):
        Latents(plain.mean, plain.std, plain.sizes[:, :1], plain.names)


# --- caption dropout


def test_captions_are_dropped_as_often_as_asked_and_nothing_else_changes():
    plain = samples(list(islice(whole(many()), 100)))
    some = samples(list(islice(whole(many(caption_dropout=0.25)), 100)))
    dropped = {where for where, sample in some.items() if sample[1] == ""}
    kinds = Counter(some[where][3] for where in dropped)
    assert 70 <= kinds[False] <= 130 and 160 <= kinds[True] <= 240  # of 400 and of 800
    assert dropped == {
        where
        for where in plain
        if torch.rand((), generator=generator(7, "caption_dropout", *where)) < 0.25
    }
    assert {where: sample for where, sample in plain.items() if where not in dropped} == {
        where: sample for where, sample in some.items() if where not in dropped
    }
    for where in dropped:
        assert (some[where][0], *some[where][2:]) == (plain[where][0], *plain[where][2:])


@pytest.mark.parametrize(
    ("asked", "kept", "lost"),
    [
        ({"prior_caption_dropout": 1.0}, False, True),
        ({"caption_dropout": 1.0, "prior_caption_dropout": 0.0}, True, False),
    ],
)
def test_class_samples_may_lose_their_captions_at_a_rate_of_their_own(asked, kept, lost):
    found = samples(list(islice(whole(many(**asked)), 5)))
    assert {is_prior for _, prompt, _, is_prior in found.values() if prompt} == {kept}
    assert {is_prior for _, prompt, _, is_prior in found.values() if not prompt} == {lost}


def test_more_dropout_drops_the_same_and_more_until_all():
    def dropped(probability: float) -> set[tuple[int, int]]:
        found = samples(list(islice(whole(many(caption_dropout=probability)), 20)))
        return {where for where, sample in found.items() if not sample[1]}

    assert dropped(0.0) == set() and len(dropped(1.0)) == 240
    assert dropped(0.2) < dropped(0.6) < dropped(1.0)


def test_every_kind_of_source_must_be_divisible():
    with pytest.raises(UserError, match=r"training\.batch=4"):
        many(world=8)
    with pytest.raises(UserError, match=r"prior\.batch=6"):
        many(world=4, prior_batch=6)
