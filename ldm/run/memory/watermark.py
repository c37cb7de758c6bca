"""How much memory training and drawing will need: their tensors, followed without making them.

The run's own networks work on tensors that have shapes and no content, and every tensor is counted
from its making to its end. What libraries and allocator take beside is added as it was measured
(`python -m tests.full_size`).
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm.data.sizes import sizes_of_whole
from ldm.models.adapters import Adapter, taken_out
from ldm.models.base import BaseModel
from ldm.models.precision import autocast
from ldm.models.unet import predict
from ldm.sampling.generate import PIXELS_AT_ONCE

CPU = torch.device("cpu")
LIBRARIES = 2**29  # what Python and the libraries take before anything is loaded


class Watermark(TorchDispatchMode):
    """Counts the bytes of all tensors that live while it is entered; `peak` is the most at once."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """held: tensors that were there before."""
        super().__init__()
        self.now = self.peak = 0
        self._living: set[int] = set()
        self._count(held)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self._count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def restart(self) -> int:
        """The peak so far; from here on another one is looked for."""
        peak, self.peak = self.peak, self.now
        return peak

    def _count(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            place = storage._cdata
            if place not in self._living:  # else a view, or changed in place
                self._living.add(place)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, place, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _gone(self, place: int, size: int) -> None:
        self._living.discard(place)
        self.now -= size


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of training."""

    prompts: list[str]  # of each sample
    taught: int  # how many samples' targets the frozen base predicts
    resolution: int  # pixels along one side of a square: the most, for no bucket has a larger area
    precision: str


@dataclass(frozen=True)
class Stepping:
    """How an optimizer steps: float32 copies of a parameter that it makes for itself meanwhile."""

    copies: float = 0.0
    all_at_once: bool = False  # they are of all parameters together
    alone: bool = False  # one by one, and each gradient is freed
    in_backward: bool = False  # as well, as soon as it is there


@dataclass(frozen=True)
class Need:
    """Bytes that training takes."""

    peak: int  # the most in an optimizer step
    held: int  # between two steps: weights, gradients, what optimizer and averages keep


def training_need(
    base: BaseModel,
    adapters: Mapping[str, Adapter],
    prepare: Callable[[BaseModel, Mapping[str, Adapter]], Mapping[str, nn.Module]],
    one: Pass,
    *,
    passes: int = 1,
    kept: int = 0,
    teacher: BaseModel | None = None,
    stepping: Stepping = Stepping(),
) -> Need:
    """What an optimizer step of `passes` passes takes; `base` is only looked at.

    adapters: those in `base`, without which it is its own teacher. prepare: sets what is trained of
    the copies that it is given, and returns it. kept: bytes that optimizer and averages hold for
    each trained parameter, beside weights and gradients. teacher: an untouched copy of the base,
    where one is held as well; what it shares with `base` counts once.
    """
    with _fakes() as fake:
        student, own = fake(base, adapters)
        trained = prepare(student, own)
        _let_pass(student)
        parameters = [p for module in trained.values() for p in module.parameters()]
        parameters = [p for p in parameters if p.requires_grad]
        for parameter in parameters if stepping.in_backward else ():
            parameter.register_post_accumulate_grad_hook(partial(_step, stepping))
        frozen = None
        if teacher:
            parts = {"vae": base.vae, **base.networks}
            shared = {name: getattr(student, name) for name in parts if _has(teacher, name, parts)}
            frozen = replace(fake(teacher)[0], **shared)
        held = [*_tensors(student), *(_tensors(frozen) if frozen else ())]
        with Watermark(held) as mark:
            for _ in range(passes):
                train_once(student, own, frozen, one)
            step_all(stepping, parameters)
        always = LIBRARIES + kept * sum(p.numel() for p in parameters)
    return Need(always + mark.peak, always + mark.now)


def drawing_bytes(base: BaseModel, resolution: int, batch: int, guided: bool) -> int:
    """The most that drawing `batch` pictures at once takes beside the networks' weights."""
    return max(drawing_stages(base, resolution, batch, guided).values())


def drawing_stages(
    base: BaseModel, resolution: int, batch: int, guided: bool, sliced: bool = False
) -> dict[str, int]:
    """The same for each kind of network by itself: "text_encoder", "unet" and "vae".

    sliced: the VAE decodes one picture at a time, and larger ones than it was made for in tiles.
    """
    rows, most = batch * (2 if guided else 1), {}
    with _fakes() as fake:
        model, _ = fake(base)
        if sliced:
            model.vae.enable_slicing()
            model.vae.enable_tiling()
        with Watermark(_tensors(model)) as mark, torch.no_grad():
            weights = mark.now
            noise = _latents(model, rows, resolution)
            text = model.text.encode([f"{row}" for row in range(rows)], "cpu")
            sizes = sizes_of_whole(resolution, resolution, rows)
            most["text_encoder"] = mark.restart()
            clean = predict(model.unet, noise, 0, text, sizes)
            del text, noise
            most["unet"] = mark.restart()
            at_once = max(1, PIXELS_AT_ONCE // resolution**2)
            model.vae.decode(clean[: min(batch, at_once)])
            most["vae"] = mark.restart()
    return {name: peak - weights for name, peak in most.items()}


def _has(model: BaseModel, name: str, parts: Mapping[str, nn.Module]) -> bool:
    """Whether it shares a part."""
    return getattr(model, name) is parts[name]


def step_all(stepping: Stepping, parameters: Iterable[nn.Parameter]) -> None:
    """Make and free what an optimizer step does, of the parameters that still have gradients."""
    left = [parameter for parameter in parameters if parameter.grad is not None]
    if stepping.all_at_once:
        torch.empty(int(stepping.copies * sum(parameter.numel() for parameter in left)))
        return
    for parameter in left:
        _step(stepping, parameter)


def _step(stepping: Stepping, parameter: Tensor) -> None:
    if stepping.alone and parameter.dtype != torch.float32:  # its copy takes its place
        parameter.grad = None
    made = torch.empty(int(stepping.copies * parameter.numel()))
    if stepping.alone:
        parameter.grad = None
    del made


def _let_pass(student: BaseModel) -> None:
    """LoHa's and LoKr's layers toss a coin in training, and there is nothing to be seen on it."""
    from peft.tuners.lycoris_utils import LycorisLayer

    for network in student.networks.values():
        for layer in network.modules():
            if isinstance(layer, LycorisLayer):
                layer.training = False


def train_once(
    student: BaseModel,
    adapters: Mapping[str, Adapter],
    frozen: BaseModel | None,
    one: Pass,
    device: torch.device = CPU,
) -> None:
    """Forward and backward pass of all samples, whose latents are zeros; adds to gradients.

    frozen: what predicts the targets of `one.taught` samples, unless adapters are taken out for it.
    """
    teacher = student if adapters else frozen
    rows, side = len(one.prompts), one.resolution
    noisy = _latents(student, rows, side).to(device)
    t, sizes = torch.zeros(rows, dtype=torch.long), sizes_of_whole(side, side, rows)
    t, sizes = t.to(device), sizes.to(device)
    with autocast(device, one.precision):
        text = student.text.encode(one.prompts, device)
        prediction = predict(student.unet, noisy, t, text, sizes)
        target = noisy
        if teacher is not None and (count := one.taught):
            with taken_out(adapters.values()), torch.no_grad():
                same = teacher.text.encode(one.prompts[-count:], device)
                target = predict(teacher.unet, noisy[-count:], t[-count:], same, sizes[-count:])
        loss = (prediction[-len(target) :] - target).pow(2).mean()
    loss.backward()


@contextmanager
def _fakes() -> Iterator[Callable[..., tuple[BaseModel, Mapping[str, Adapter]]]]:
    """Inside, tensors have no content; what it gives copies a base, with adapters in it, so."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copy_of


def copy_of(
    base: BaseModel, adapters: Mapping[str, Adapter] = MappingProxyType({}), device: str = "cpu"
) -> tuple[BaseModel, Mapping[str, Adapter]]:
    """A base and the adapters in it, of the same forms on `device` ("meta" has no content)."""
    known = {id(tensor): _alike(tensor, device) for tensor in _tensors(base)}
    networks, own = copy.deepcopy(({"vae": base.vae, **base.networks}, dict(adapters)), known)
    return replace(base, **networks), own


def _alike(tensor: Tensor, device: str) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if not isinstance(tensor, nn.Parameter):
        return made
    return nn.Parameter(made, requires_grad=tensor.requires_grad)


def _tensors(base: BaseModel) -> Iterator[Tensor]:
    for part in (base.vae, *base.networks.values()):
        yield from part.parameters()
        yield from part.buffers()


def _latents(base: BaseModel, count: int, resolution: int) -> Tensor:
    side = resolution // base.latent_factor
    return torch.zeros(count, base.latent_channels, side, side)
