"""What is trained on at every step: an endless stream of micro-batches of latents and prompts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypedDict

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.latents import Latents
from ldm.errors import UserError
from ldm.randomness import generator


class Batch(TypedDict):
    """B samples of one process's micro-batch, all that have latents of one shape.

    In the order of their indices: those of the subjects first, then the class images.
    """

    mean: torch.Tensor  # [B, C, h, w], float32
    std: torch.Tensor  # [B, C, h, w], float32
    sizes: torch.Tensor  # [B, 6], float32: see `ldm.data.sizes`
    prompts: list[str]  # "" where the caption is dropped
    names: list[str]  # of the pictures' files
    weight: torch.Tensor  # [B], float32: what the sample's loss is multiplied by
    mask: torch.Tensor | None  # [B, 1, h, w], float32, 0..1; None: no sample here has one
    is_prior: torch.Tensor  # [B], bool: a class image, not a picture of a subject
    index: torch.Tensor  # [B], int64: place in the global batch of the step
    step: int  # optimizer step, from 0


@dataclass(frozen=True)
class Sample:
    """One sample of a source."""

    mean: torch.Tensor  # [C, h, w], float32
    std: torch.Tensor  # [C, h, w], float32
    sizes: torch.Tensor  # [6], float32
    prompt: str
    name: str
    weight: float = 1.0
    mask: torch.Tensor | None = None  # [1, h, w], float32, 0..1


class Source(Protocol):
    """Where samples of one subject, or of one class, come from.

    A *turn* says the how-manyeth sample of this source, since step 0, one is: from 0.
    """

    def ready(self, turns: range) -> None:
        """Called once per optimizer step in every process, before `take`: the turns, perhaps none,
        that this step takes of this source in all processes together. May wait."""

    def take(self, seed: int, step: int, turn: int, index: int) -> Sample:
        """The sample of this turn; `index`: its place in the step's global batch.

        The same arguments give the same sample, in whatever process.
        """


class Pictures:
    """A source of latents of pictures, each used as often as any other."""

    def __init__(
        self,
        latents: Latents,
        prompts: Sequence[Sequence[str]],
        *,
        weight: float = 1.0,
        purpose: str = "picture",
        number: int = 0,
    ) -> None:
        """`prompts`: for each picture those to draw from; `weight` (>= 0): of each sample's loss.

        `purpose` and `number` name the draws of the order: sources that share them, and their
        count of pictures, run through theirs in step. ValueError for arguments that do not fit.
        """
        if len(prompts) != len(latents) or not all(prompts) or not len(latents):
            raise ValueError(
                f"at least one picture, and prompts for each: got {len(latents)} pictures, "
                f"{len(prompts)} lists of prompts"
            )
        if not 0 <= weight < float("inf"):
            raise ValueError(f"a weight is a number from 0, got {weight}")
        self.latents, self.prompts, self.weight = latents, prompts, weight
        self.order = (purpose, number)

    def ready(self, turns: range) -> None:
        """Nothing to wait for."""

    def take(self, seed: int, step: int, turn: int, index: int) -> Sample:
        latents = self.latents
        picture = self._picture(seed, turn)
        variant = _choice(latents.variants, seed, "variant", step, index)
        prompts = self.prompts[picture]
        return Sample(
            mean=latents.mean[picture][variant],  # N V C h w -> C h w
            std=latents.std[picture][variant],
            sizes=latents.sizes[picture, variant],
            prompt=prompts[_choice(len(prompts), seed, "caption", step, index)],
            name=latents.names[picture],
            weight=self.weight,
            mask=None if latents.mask is None else latents.mask[picture][variant],
        )

    def _picture(self, seed: int, turn: int) -> int:
        """The pictures come in seeded permutations that run on across steps, so that each is used
        as often as any other, whatever the batch."""
        epoch, position = divmod(turn, len(self.latents))
        return int(_permutation(seed, *self.order, epoch, len(self.latents))[position])


@dataclass(frozen=True)
class Stretch:
    """The samples of one kind in each step's global batch, dealt out to its sources in turn.

    Counting places on across steps, place q belongs to source q % n and is its turn q // n.
    """

    sources: tuple[Source, ...]
    batch: int  # samples per step
    offset: int  # the first one's index in the global batch

    def ready(self, step: int) -> None:
        """Tell every source what the step takes of it, over all processes."""
        for number, source in enumerate(self.sources):
            first, last = (self._turns(end * self.batch, number) for end in (step, step + 1))
            source.ready(range(first, last))

    def take(self, seed: int, step: int, places: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """The samples at these places (0 .. batch - 1), each after its global index."""
        for place in places:
            turn, number = divmod(step * self.batch + place, len(self.sources))
            index = self.offset + place
            yield index, self.sources[number].take(seed, step, turn, index)

    def _turns(self, places: int, number: int) -> int:
        """How many of the first `places` places belong to this source."""
        count = len(self.sources)
        return (places - number + count - 1) // count


class TrainingSet(IterableDataset[list[Batch]]):
    """Endless and step-indexed: what stands at (step, index) is a function of the seed alone.

    A step's global batch has `batch` samples of the subjects (index 0 ...), then `prior_batch`
    class images. Over the steps each subject has an equal share of the samples, however many
    pictures there are of it, and so has each class. The batch is dealt out in equal contiguous
    shares, to `accumulate` micro-batches and in each of these to `world` processes. A micro-batch
    is one `Batch` for each shape of latents in it: a single one where all pictures are squares.
    Use it with `DataLoader(batch_size=None)`; any number of workers gives the same stream of
    `Pictures`. (Each worker has its own copies of the sources and readies them for its own steps.)
    """

    def __init__(
        self,
        subjects: Sequence[Source],
        classes: Sequence[Source] = (),
        *,
        batch: int = 1,
        prior_batch: int = 0,
        accumulate: int = 1,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        caption_dropout: float = 0.0,
        prior_caption_dropout: float | None = None,
    ) -> None:
        """`start_step`: 0, or the number of optimizer steps done when a run goes on;
        `caption_dropout`: the probability, 0..1, that a sample's prompt becomes "";
        `prior_caption_dropout`: that of class samples, None: the same.

        Raises UserError where a batch is below 1 or not divisible by accumulate x world;
        ValueError where the arguments do not fit together.
        """
        super().__init__()
        if not subjects:
            raise ValueError("at least one subject, got none")
        if not 0 <= rank < world:
            raise ValueError(f"rank lies in 0 .. {world - 1}, got {rank}")
        if prior_caption_dropout is None:
            prior_caption_dropout = caption_dropout
        self.dropout = (caption_dropout, prior_caption_dropout)  # of a subject's, a class's samples
        for probability in self.dropout:
            if not 0 <= probability <= 1:
                raise ValueError(f"caption_dropout is a probability, got {probability}")
        _check_orders([*subjects, *classes])
        check_divisible("training.batch", batch, accumulate, world)
        self.stretches = [Stretch(tuple(subjects), batch, offset=0)]
        if classes:
            check_divisible("prior.batch", prior_batch, accumulate, world)
            self.stretches.append(Stretch(tuple(classes), prior_batch, offset=batch))
        self.accumulate, self.seed, self.start_step = accumulate, seed, start_step
        self.rank, self.world = rank, world
        self._ready_for: int | None = None  # step

    def __iter__(self) -> Iterator[list[Batch]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        self._ready_for = None
        for count in itertools.count(self.start_step * self.accumulate + first, stride):
            yield self.micro_batch(*divmod(count, self.accumulate))

    def micro_batch(self, step: int, part: int) -> list[Batch]:
        """This process's share of micro-batch `part` (0 .. accumulate - 1) of a step."""
        if step != self._ready_for:
            for stretch in self.stretches:
                stretch.ready(step)
            self._ready_for = step
        taken: dict[torch.Size, list[tuple[int, Sample]]] = {}  # by shape
        for stretch in self.stretches:
            share = stretch.batch // (self.accumulate * self.world)
            start = (part * self.world + self.rank) * share
            for index, sample in stretch.take(self.seed, step, range(start, start + share)):
                taken.setdefault(sample.mean.shape, []).append((index, sample))
        return [self._batch(step, *zip(*alike, strict=True)) for alike in taken.values()]

    def _batch(self, step: int, indices: Sequence[int], samples: Sequence[Sample]) -> Batch:
        """Samples of one shape, in the order of their global indices."""
        prompts = zip((sample.prompt for sample in samples), indices, strict=True)
        index = torch.tensor(indices)
        return Batch(
            mean=torch.stack([sample.mean for sample in samples]),
            std=torch.stack([sample.std for sample in samples]),
            sizes=torch.stack([sample.sizes for sample in samples]),
            prompts=[self._kept(prompt, step, index) for prompt, index in prompts],
            names=[sample.name for sample in samples],
            weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
            mask=_masks(samples),
            is_prior=index >= self.stretches[0].batch,
            index=index,
            step=step,
        )

    def _kept(self, prompt: str, step: int, index: int) -> str:
        """The prompt or, where it is dropped, the empty one (arXiv 2207.12598, algorithm 1)."""
        probability = self.dropout[index >= self.stretches[0].batch]
        if not probability:
            return prompt
        draw = torch.rand((), generator=generator(self.seed, "caption_dropout", step, index))
        return "" if draw < probability else prompt


def _masks(samples: Sequence[Sample]) -> torch.Tensor | None:
    """What has no mask, such as a class image beside masked pictures, counts everywhere: ones."""
    if all(sample.mask is None for sample in samples):
        return None
    return torch.stack(
        [torch.ones_like(s.mean[:1]) if s.mask is None else s.mask for s in samples]
    )


@lru_cache(maxsize=64)
def _permutation(seed: int, purpose: str, number: int, epoch: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator(seed, purpose, epoch, number))


def _choice(count: int, seed: int, purpose: str, step: int, index: int) -> int:
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator(seed, purpose, step, index)))


def _check_orders(sources: Sequence[Source]) -> None:
    orders = [source.order for source in sources if isinstance(source, Pictures)]
    if len(set(orders)) < len(orders):
        raise ValueError(f"each source its own purpose and number, got {orders}")


def check_divisible(key: str, batch: int, accumulate: int, world: int) -> None:
    """Raise UserError, naming `key`, unless every micro-batch of every process gets as many."""
    shares = accumulate * world
    if batch < 1 or batch % shares:
        wanted = max(1, round(batch / shares)) * shares
        raise UserError(
            f"{key}={batch} cannot be dealt out to {accumulate} micro-batches "
            f"(training.accumulate) on {world} processes: make it a multiple of {shares}, "
            f"such as {wanted}"
        )
