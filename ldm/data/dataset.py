"""What is trained on at every step: an endless stream of micro-batches of latents and prompts."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ldm.data.latents import Latents
from ldm.errors import UserError
from ldm.randomness import generator


class Batch(TypedDict):
    """One process's micro-batch: B samples, those of the subject first, then the class images."""

    mean: torch.Tensor  # [B, C, h, w], float32
    std: torch.Tensor  # [B, C, h, w], float32
    prompts: list[str]
    names: list[str]  # of the pictures' files
    is_prior: torch.Tensor  # [B], bool: a class image, not a picture of the subject
    index: torch.Tensor  # [B], int64: place in the global batch of the step
    step: int  # optimizer step, from 0


@dataclass(frozen=True)
class Source:
    """Pictures of one kind, and their stretch of each step's global batch."""

    latents: Latents
    prompts: Sequence[Sequence[str]]  # for each picture those to draw from
    batch: int  # samples per step
    offset: int  # the first one's index in the global batch
    is_prior: bool

    def draw(self, seed: int, step: int, place: int) -> tuple[int, int, str]:
        """Picture, variant and prompt at one place (0 .. batch - 1) of one step.

        The pictures come in seeded permutations that run on across steps, so that each is used as
        often as any other, whatever the batch.
        """
        epoch, position = divmod(step * self.batch + place, len(self.latents))
        purpose = "class_picture" if self.is_prior else "picture"
        picture = _permutation(seed, purpose, epoch, len(self.latents))[position]
        prompts = self.prompts[picture]
        where = (step, self.offset + place)
        variant = _choice(self.latents.variants, seed, "variant", *where)
        return picture, variant, prompts[_choice(len(prompts), seed, "caption", *where)]

    def batch_of(self, seed: int, step: int, places: Sequence[int]) -> Batch:
        """The samples at these places of one step's stretch."""
        draws = [self.draw(seed, step, place) for place in places]
        pictures = torch.tensor([picture for picture, _, _ in draws])
        variants = torch.tensor([variant for _, variant, _ in draws])
        return Batch(
            mean=self.latents.mean[pictures, variants],  # N V C h w -> B C h w
            std=self.latents.std[pictures, variants],
            prompts=[prompt for _, _, prompt in draws],
            names=[self.latents.names[picture] for picture, _, _ in draws],
            is_prior=torch.full((len(draws),), self.is_prior),
            index=torch.tensor([self.offset + place for place in places]),
            step=step,
        )


class TrainingSet(IterableDataset[Batch]):
    """Endless and step-indexed: what stands at (step, index) is a function of the seed alone.

    A step's global batch has `batch` samples of the subject (index 0 ...), then `prior_batch` class
    images; of either kind all pictures are used equally often. It is dealt out in equal contiguous
    shares, to `accumulate` micro-batches and in each of these to `world` processes.
    Use it with `DataLoader(batch_size=None)`; any number of workers gives the same stream.
    """

    def __init__(
        self,
        instance: Latents,
        instance_prompts: Sequence[Sequence[str]],
        prior: Latents | None = None,
        prior_prompt: str = "",
        *,
        batch: int = 1,
        prior_batch: int = 0,
        accumulate: int = 1,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`instance_prompts`: for each picture the prompts to draw from; `start_step`: 0, or the
        number of optimizer steps done when a run goes on.

        Raises UserError where a batch is below 1 or not divisible by accumulate x world;
        ValueError where the arguments do not fit together.
        """
        super().__init__()
        _check(instance, instance_prompts, prior, rank, world)
        check_divisible("training.batch", batch, accumulate, world)
        self.sources = [Source(instance, instance_prompts, batch, offset=0, is_prior=False)]
        if prior is not None:
            check_divisible("prior.batch", prior_batch, accumulate, world)
            prompts = [[prior_prompt]] * len(prior)
            self.sources.append(Source(prior, prompts, prior_batch, offset=batch, is_prior=True))
        self.accumulate, self.seed, self.start_step = accumulate, seed, start_step
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for count in itertools.count(self.start_step * self.accumulate + first, stride):
            yield self.micro_batch(*divmod(count, self.accumulate))

    def micro_batch(self, step: int, part: int) -> Batch:
        """This process's share of micro-batch `part` (0 .. accumulate - 1) of a step."""
        batches = []
        for source in self.sources:
            share = source.batch // (self.accumulate * self.world)
            start = (part * self.world + self.rank) * share
            batches.append(source.batch_of(self.seed, step, range(start, start + share)))
        return Batch(
            mean=torch.cat([batch["mean"] for batch in batches]),
            std=torch.cat([batch["std"] for batch in batches]),
            prompts=[prompt for batch in batches for prompt in batch["prompts"]],
            names=[name for batch in batches for name in batch["names"]],
            is_prior=torch.cat([batch["is_prior"] for batch in batches]),
            index=torch.cat([batch["index"] for batch in batches]),
            step=step,
        )


@lru_cache(maxsize=16)
def _permutation(seed: int, purpose: str, epoch: int, count: int) -> list[int]:
    order = torch.randperm(count, generator=generator(seed, purpose, epoch))
    return [int(place) for place in order]


def _choice(count: int, seed: int, purpose: str, step: int, index: int) -> int:
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator(seed, purpose, step, index)))


def _check(
    instance: Latents,
    prompts: Sequence[Sequence[str]],
    prior: Latents | None,
    rank: int,
    world: int,
) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank lies in 0 .. {world - 1}, got {rank}")
    if len(prompts) != len(instance) or not all(prompts) or not len(instance):
        raise ValueError(
            f"at least one picture, and prompts for each: got {len(instance)} pictures, "
            f"{len(prompts)} lists of prompts"
        )
    if prior is None:
        return
    shape, prior_shape = tuple(instance.mean.shape[2:]), tuple(prior.mean.shape[2:])
    if not len(prior) or shape != prior_shape:
        raise ValueError(f"{len(prior)} class latents of {prior_shape}, the subject's are {shape}")


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
