"""The stream of training samples: complete, repeatable, the same however it is dealt out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ldm.data.dataset import Batch, Pictures, TrainingSet
from ldm.data.latents import Latents
from ldm.errors import UserError
from ldm.randomness import generator


def latents(count: int, variants: int, base: int, masked: bool = False) -> Latents:
    """Latents whose mean tells picture and variant apart: base + 10 * picture + variant; so do
    their sizes, and the mask, as a hundredth of it."""
    label = base + 10 * torch.arange(count)[:, None] + torch.arange(variants)[None]
    mean = label.view(count, variants, 1, 1, 1).expand(-1, -1, 4, 2, 3).float()
    names = [f"{base + n}.png" for n in range(count)]
    mask = mean[:, :, :1] / 100 if masked else None
    sizes = mean[..., 0].flatten(2)[..., :6]
    return Latents([*mean], [*mean + 0.5], sizes, names, None if mask is None else [*mask])


def prompts_of(count: int, word: str = "") -> list[list[str]]:
    return [[f"{word}{n}{letter}" for letter in "ab"] for n in range(count)]


SUBJECT = latents(5, 3, base=0)
CLASS = latents(21, 2, base=1000)
PROMPTS = prompts_of(5)


def pictures_of(latents: Latents, prompts: list[list[str]] = PROMPTS, **options: Any) -> Pictures:
    return Pictures(latents, prompts, **options)


def class_pictures(latents: Latents = CLASS, number: int = 0) -> Pictures:
    prompts = [["a robot"]] * len(latents)
    return Pictures(latents, prompts, purpose="class_picture", number=number)


def training_set(**options: Any) -> TrainingSet:
    options = {"batch": 4, "prior_batch": 8, "seed": 7} | options
    return TrainingSet([pictures_of(SUBJECT)], [class_pictures()], **options)


def whole(stream: Iterable[list[Batch]]) -> Iterator[Batch]:
    """Micro-batches of one shape, as the batches that they are."""
    for (batch,) in stream:
        yield batch


def samples(batches: list[Batch]) -> dict[tuple[int, int], tuple]:
    """(step, index) -> everything that is known of the sample; each may come once only."""
    found = {}
    for batch in batches:
        for n, index in enumerate(batch["index"].tolist()):
            mean, std = batch["mean"][n], batch["std"][n]
            assert len(mean.unique()) == 1 and torch.equal(std, mean + 0.5)
            assert torch.equal(batch["sizes"][n], mean.flatten()[:6])
            where = (batch["step"], index)
            assert where not in found
            prior = bool(batch["is_prior"][n])
            found[where] = (mean[0, 0, 0].item(), batch["prompts"][n], batch["names"][n], prior)
    return found


def stream(steps: int, **options: Any) -> dict[tuple[int, int], tuple]:
    parts = steps * options.get("accumulate", 1)
    return samples(list(islice(whole(training_set(**options)), parts)))


def test_micro_batch_layout():
    (batch,) = next(iter(training_set()))
    assert set(batch) == set(Batch.__annotations__)
    assert batch["mean"].shape == batch["std"].shape == (12, 4, 2, 3)
    assert batch["mean"].dtype == torch.float32
    assert batch["is_prior"].tolist() == [False] * 4 + [True] * 8
    assert batch["is_prior"].dtype == torch.bool and batch["index"].dtype == torch.int64
    assert batch["index"].tolist() == list(range(12))
    assert batch["step"] == 0 and batch["mask"] is None
    assert batch["weight"].tolist() == [1.0] * 12 and batch["weight"].dtype == torch.float32
    for n in range(12):
        value, name = int(batch["mean"][n, 0, 0, 0]), batch["names"][n]
        picture, variant = divmod(value % 1000, 10)
        if batch["is_prior"][n]:
            assert name == f"{1000 + picture}.png" and batch["prompts"][n] == "a robot"
            assert value >= 1000 and variant < 2
        else:
            assert name == f"{picture}.png" and batch["prompts"][n] in PROMPTS[picture]
            assert value < 1000 and variant < 3


def test_without_prior():
    found = TrainingSet([pictures_of(SUBJECT)], batch=2, prior_batch=8)
    (batch,) = next(iter(found))
    assert batch["index"].tolist() == [0, 1] and not batch["is_prior"].any()


@pytest.mark.parametrize("kind", [(False, 5, 4), (True, 21, 8)])
def test_every_picture_is_used_equally_often(kind):
    is_prior, count, per_step = kind
    steps = count * 3  # so that the draws are whole epochs
    found = stream(steps)
    names = [sample[2] for _, sample in sorted(found.items()) if sample[3] is is_prior]
    assert len(names) == steps * per_step
    epochs = [names[n : n + count] for n in range(0, len(names), count)]
    assert all(len(set(epoch)) == count for epoch in epochs)  # each epoch is a permutation
    assert len({tuple(epoch) for epoch in epochs}) > len(epochs) / 2  # and another one each time
    assert set(Counter(names).values()) == {steps * per_step // count}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_drawn_is_a_function_of_seed_step_and_index(accumulate):
    found = stream(12, accumulate=accumulate)
    for (step, index), (value, prompt, name, _) in found.items():
        prior = index >= 4
        purpose, count, batch = ("class_picture", 21, 8) if prior else ("picture", 5, 4)
        epoch, position = divmod(step * batch + index - (4 if prior else 0), count)
        picture = int(torch.randperm(count, generator=generator(7, purpose, epoch))[position])
        draw = generator(7, "variant", step, index)
        variant = int(torch.randint(2 if prior else 3, (), generator=draw))
        base = 1000 if prior else 0
        assert (value, name) == (base + 10 * picture + variant, f"{base + picture}.png")
        draw = generator(7, "caption", step, index)
        place = int(torch.randint(2, (), generator=draw))
        assert prompt == ("a robot" if prior else PROMPTS[picture][place])


def test_every_variant_and_prompt_is_drawn():
    found = stream(100)
    assert len({sample[0] for sample in found.values()}) == 5 * 3 + 21 * 2
    prompts = Counter(sample[1] for sample in found.values() if not sample[3])
    assert set(prompts) == {prompt for prompts in PROMPTS for prompt in prompts}
    assert min(prompts.values()) > 20  # of 40 expected each


def test_variant_and_prompt_are_drawn_apart():
    found = TrainingSet([pictures_of(latents(1, 2, base=0), [["x", "y"]])])
    pairs = Counter(
        (batch["mean"][0, 0, 0, 0].item(), batch["prompts"][0]) for batch in islice(whole(found), 200)
    )
    assert len(pairs) == 4 and min(pairs.values()) > 25  # of 50 expected each


def test_subject_and_class_pictures_are_drawn_apart():
    classes = [class_pictures(latents(5, 1, base=1000))]
    found = TrainingSet([pictures_of(SUBJECT)], classes, prior_batch=1)
    pairs = {tuple(batch["names"]) for batch in islice(whole(found), 100)}
    assert len(pairs) > 15  # of 25; five, were the permutations the same


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_same_samples_however_they_are_dealt_out(accumulate, world):
    expected = stream(6)
    batches = []
    for rank in range(world):
        dealt = training_set(accumulate=accumulate, world=world, rank=rank)
        for n, batch in enumerate(islice(whole(dealt), 6 * accumulate)):
            step, part = divmod(n, accumulate)
            first = (part * world + rank) * 4 // (accumulate * world)
            assert batch["step"] == step and batch["index"][0] == first
            shares = accumulate * world
            assert batch["is_prior"].tolist() == [False] * (4 // shares) + [True] * (8 // shares)
            batches.append(batch)
    assert samples(batches) == expected


@pytest.mark.parametrize("start", [1, 3, 5])
def test_resumed_stream_goes_on_where_it_stopped(start):
    straight = stream(8, accumulate=2)
    rest = stream(8 - start, accumulate=2, start_step=start)
    assert rest == {where: sample for where, sample in straight.items() if where[0] >= start}


def test_iterating_again_starts_over_and_shares_no_state():
    found = training_set()
    one, two = whole(found), whole(found)
    first = [next(one) for _ in range(3)]
    assert samples(first) == samples([next(two) for _ in range(3)])


def test_seed_matters_and_global_state_does_not():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = stream(4)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert stream(4) == first
    assert stream(4, seed=8) != first


def test_subject_samples_do_not_depend_on_the_prior():
    alone = samples(list(islice(whole(TrainingSet([pictures_of(SUBJECT)], batch=4, seed=7)), 5)))
    assert alone == {where: sample for where, sample in stream(5).items() if not sample[3]}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_stream(workers):
    context = "fork" if workers else None
    found = training_set(accumulate=2)
    limit = 60.0 if workers else 0.0  # seconds: a fork of a process with threads may hang
    loader = DataLoader(
        found, None, num_workers=workers, multiprocessing_context=context, timeout=limit
    )
    assert samples(list(islice(whole(loader), 10))) == stream(5, accumulate=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, r"training\.batch=0"),
        ({"batch": 3, "accumulate": 2}, r"training\.batch=3 .* multiple of 2, such as 4"),
        ({"batch": 4, "prior_batch": 6, "accumulate": 2, "world": 2}, r"prior\.batch=6"),
        ({"prior_batch": 0}, r"prior\.batch=0"),
    ],
)
def test_batches_that_cannot_be_dealt_out(options, message):
    with pytest.raises(UserError, match=message):
        training_set(**options)


def test_arguments_that_do_not_fit_together():
    subject = pictures_of(SUBJECT)
    with pytest.raises(ValueError, match="one subject"):
        TrainingSet([])
    with pytest.raises(ValueError, match="4 lists of prompts"):
        pictures_of(SUBJECT, PROMPTS[:4])
    with pytest.raises(ValueError, match="prompts for each"):
        pictures_of(SUBJECT, [*PROMPTS[:4], []])
    with pytest.raises(ValueError, match="got 0 pictures"):
        pictures_of(latents(0, 1, base=0), [])
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight"):
            pictures_of(SUBJECT, weight=weight)
    with pytest.raises(ValueError, match="rank"):
        training_set(rank=1)
    for dropout in (-0.1, 1.1):
        with pytest.raises(ValueError, match="caption_dropout"):
            training_set(caption_dropout=dropout)
        with pytest.raises(ValueError, match="caption_dropout"):
            training_set(prior_caption_dropout=dropout)
    with pytest.raises(ValueError, match="purpose"):
        TrainingSet([subject], [pictures_of(CLASS, prompts_of(21))], prior_batch=1)
