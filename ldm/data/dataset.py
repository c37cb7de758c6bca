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
    """One process's micro-batch: B samples, those of the subjects first, then the class images."""

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
class Samples:
    """B samples of one source."""

    mean: torch.Tensor  # [B, C, h, w], float32
    std: torch.Tensor  # [B, C, h, w], float32
    sizes: torch.Tensor  # [B, 6], float32
    prompts: list[str]
    names: list[str]
    weight: torch.Tensor  # [B], float32
    mask: torch.Tensor | None = None  # [B, 1, h, w], float32, 0..1


class Source(Protocol):
    """Where samples of one subject, or of one class, come from.

    A *turn* says the how-manyeth sample of this source, since step 0, one is: from 0.
    """

    def ready(self, turns: range) -> None:
        """Called once per optimizer step in every process, before `take`: the turns, perhaps none,
        that this step takes of this source in all processes together. May wait."""

    def take(self, seed: int, step: int, turns: Sequence[int], indices: Sequence[int]) -> Samples:
        """The samples of these turns, at least one; `indices`: their places in the step's global
        batch. The same arguments give the same samples, in whatever process."""


class Pictures:
    """A source of latents in memory, each picture used as often as any other."""

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

    def take(self, seed: int, step: int, turns: Sequence[int], indices: Sequence[int]) -> Samples:
        latents = self.latents
        chosen = [self._picture(seed, turn) for turn in turns]
        variants = [_choice(latents.variants, seed, "variant", step, index) for index in indices]
        at = torch.tensor(chosen), torch.tensor(variants)
        prompts_of = [self.prompts[picture] for picture in chosen]
        return Samples(
            mean=latents.mean[at],  # N V C h w -> B C h w
            std=latents.std[at],
            sizes=latents.sizes[at],
            prompts=[
                prompts[_choice(len(prompts), seed, "caption", step, index)]
                for prompts, index in zip(prompts_of, indices, strict=True)
            ],
            names=[latents.names[picture] for picture in chosen],
            weight=torch.full((len(chosen),), self.weight, dtype=torch.float32),
            mask=None if latents.mask is None else latents.mask[at],
        )

    def _picture(self, seed: int, turn: int) -> int:
        """The pictures come in seeded permutations that run on across steps, so that each is used
        as often as any other, whatever the batch."""
        epoch, position = divmod(turn, len(self.latents))
        return _permutation(seed, *self.order, epoch, len(self.latents))[position]


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

    def take(
        self, seed: int, step: int, places: Sequence[int]
    ) -> Iterator[tuple[list[int], Samples]]:
        """The samples at these places (0 .. batch - 1) by source, with their global indices."""
        count, start = len(self.sources), step * self.batch
        for number, source in enumerate(self.sources):
            mine = [place for place in places if (start + place) % count == number]
            if mine:
                turns = [(start + place) // count for place in mine]
                indices = [self.offset + place for place in mine]
                yield indices, source.take(seed, step, turns, indices)

    def _turns(self, places: int, number: int) -> int:
        """How many of the first `places` places belong to this source."""
        count = len(self.sources)
        return (places - number + count - 1) // count


class TrainingSet(IterableDataset[Batch]):
    """Endless and step-indexed: what stands at (step, index) is a function of the seed alone.

    A step's global batch has `batch` samples of the subjects (index 0 ...), then `prior_batch`
    class images. Over the steps each subject has an equal share of the samples, however many
    pictures there are of it, and so has each class. The batch is dealt out in equal contiguous
    shares, to `accumulate` micro-batches and in each of these to `world` processes.
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
        _check_pictures([*subjects, *classes])
        check_divisible("training.batch", batch, accumulate, world)
        self.stretches = [Stretch(tuple(subjects), batch, offset=0)]
        if classes:
            check_divisible("prior.batch", prior_batch, accumulate, world)
            self.stretches.append(Stretch(tuple(classes), prior_batch, offset=batch))
        self.accumulate, self.seed, self.start_step = accumulate, seed, start_step
        self.rank, self.world = rank, world
        self._ready_for: int | None = None  # step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        self._ready_for = None
        for count in itertools.count(self.start_step * self.accumulate + first, stride):
            yield self.micro_batch(*divmod(count, self.accumulate))

    def micro_batch(self, step: int, part: int) -> Batch:
        """This process's share of micro-batch `part` (0 .. accumulate - 1) of a step."""
        if step != self._ready_for:
            for stretch in self.stretches:
                stretch.ready(step)
            self._ready_for = step
        taken: list[tuple[list[int], Samples]] = []
        for stretch in self.stretches:
            share = stretch.batch // (self.accumulate * self.world)
            start = (part * self.world + self.rank) * share
            taken += stretch.take(self.seed, step, range(start, start + share))
        batch = _joined(taken, step, first_prior=self.stretches[0].batch)
        batch["prompts"] = [
            self._kept(prompt, step, index)
            for prompt, index in zip(batch["prompts"], batch["index"].tolist(), strict=True)
        ]
        return batch

    def _kept(self, prompt: str, step: int, index: int) -> str:
        """The prompt or, where it is dropped, the empty one (arXiv 2207.12598, algorithm 1)."""
        probability = self.dropout[index >= self.stretches[0].batch]
        if not probability:
            return prompt
        draw = torch.rand((), generator=generator(self.seed, "caption_dropout", step, index))
        return "" if draw < probability else prompt


def _joined(taken: Sequence[tuple[list[int], Samples]], step: int, first_prior: int) -> Batch:
    """The samples of all sources as one batch, in the order of their global indices."""
    index = torch.tensor([one for indices, _ in taken for one in indices])
    order = index.argsort()
    parts = [samples for _, samples in taken]
    prompts = [prompt for part in parts for prompt in part.prompts]
    names = [name for part in parts for name in part.names]
    return Batch(
        mean=torch.cat([part.mean for part in parts])[order],
        std=torch.cat([part.std for part in parts])[order],
        sizes=torch.cat([part.sizes for part in parts])[order],
        prompts=[prompts[place] for place in order.tolist()],
        names=[names[place] for place in order.tolist()],
        weight=torch.cat([part.weight for part in parts])[order],
        mask=_masks(parts, order),
        is_prior=index[order] >= first_prior,
        index=index[order],
        step=step,
    )


def _masks(parts: Sequence[Samples], order: torch.Tensor) -> torch.Tensor | None:
    """What has no mask, such as a class image beside masked pictures, counts everywhere: ones."""
    if all(part.mask is None for part in parts):
        return None
    masks = [
        torch.ones_like(part.mean[:, :1]) if part.mask is None else part.mask for part in parts
    ]
    return torch.cat(masks)[order]


@lru_cache(maxsize=64)
def _permutation(seed: int, purpose: str, number: int, epoch: int, count: int) -> list[int]:
    order = torch.randperm(count, generator=generator(seed, purpose, epoch, number))
    return [int(place) for place in order]


def _choice(count: int, seed: int, purpose: str, step: int, index: int) -> int:
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator(seed, purpose, step, index)))


def _check_pictures(sources: Sequence[Source]) -> None:
    pictures = [source for source in sources if isinstance(source, Pictures)]
    shapes = {tuple(source.latents.mean.shape[2:]) for source in pictures}
    if len(shapes) > 1:
        raise ValueError(f"latents of one shape, got {sorted(shapes)}")
    orders = [source.order for source in pictures]
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
