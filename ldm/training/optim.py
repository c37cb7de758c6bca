"""Optimizer and learning-rate schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.training.adafactor import Adafactor
from ldm.training.phases import EMBEDDING, TEXT_ENCODER, THROUGHOUT, Phases, groups_of

Schedule = Literal["constant", "linear", "cosine"]
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer with a warm-up and a schedule over `steps` optimizer steps.

    optimizer: a name of OPTIMIZERS, or any other for what `custom(params=groups, lr=...,
    **arguments)` makes.
    """

    learning_rate: float
    steps: int
    text_encoder_learning_rate: float | None = None  # None: the same as the UNet's
    pivotal_learning_rate: float = 1e-3  # of the embedding while it is trained alone
    betas: tuple[float, float] | None = None  # None: the optimizer's own
    weight_decay: float = 0.01
    warmup: int = 0  # steps over which the learning rate rises
    schedule: Schedule = "constant"
    optimizer: str = "adamw"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    custom: Callable[..., torch.optim.Optimizer] | None = None
    fused_backward: bool = False  # each parameter is stepped once its gradient is there

    @property
    def text_rate(self) -> float:
        rate = self.text_encoder_learning_rate
        return self.learning_rate if rate is None else rate


def build_optimizer(
    modules: Mapping[str, nn.Module],
    settings: OptimizerSettings,
    phases: Phases = THROUGHOUT,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """One optimizer with the named parameter groups of `groups_of`, in the order of `modules`.

    Where the embedding is first trained alone it is a group of its own, "embedding". fused: AdamW
    only; None lets it be fused where all parameters lie on the CPU or a CUDA device. (Not with a
    gradient scaler: a fused step unscales inside, where clipping cannot see the gradients.)
    UserError: the optimizer does not take its arguments.
    """
    rates = {TEXT_ENCODER: settings.text_rate, EMBEDDING: settings.text_rate}
    groups: Groups = [
        {"params": parameters, "lr": rates.get(name, settings.learning_rate), "name": name}
        for name, parameters in groups_of(modules, phases.pivotal > 0).items()
    ]
    return make_optimizer(groups, settings, fused)


def make_optimizer(
    groups: Groups, settings: OptimizerSettings, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimizer of these parameter groups. UserError: it does not take its arguments."""
    if fused is None:
        parameters = [p for group in groups for p in group["params"]]
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    name = settings.optimizer
    try:
        if settings.custom:
            made = settings.custom(params=groups, lr=settings.learning_rate, **settings.arguments)
        else:
            made = OPTIMIZERS[name](groups, settings, fused)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"training.optimizer={name} cannot be made with training.optimizer_arguments="
            f"{dict(settings.arguments)}, training.betas and training.weight_decay: {error}"
        ) from error
    _load_exactly(made)
    return made


def _load_exactly(optimizer: torch.optim.Optimizer) -> None:
    """Have state be loaded in the type it was saved in: torch gives it that of the weights."""
    saved: dict[int, dict[str, Any]] = {}

    def keep(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved.update(state_dict["state"])

    def put_back(optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for number, values in saved.items():
            own = optimizer.state[parameters[number]]
            for name, value in values.items():
                if isinstance(value, Tensor) and own[name].dtype != value.dtype:
                    own[name] = value.to(own[name].device)
        saved.clear()
        _lay_out_alike(optimizer)

    optimizer.register_load_state_dict_pre_hook(keep)
    optimizer.register_load_state_dict_post_hook(put_back)


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory layout of its parameter.

    Fused steps walk through memory and would pair each weight with another one's state.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _adamw(groups: Groups, settings: OptimizerSettings, fused: bool) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101)."""
    usual = _usual(settings)
    if not {"foreach", "differentiable"} & usual.keys():  # these are instead of fused
        usual = {"fused": fused, **usual}
    return torch.optim.AdamW(groups, **usual)


def _adamw_8bit(groups: Groups, settings: OptimizerSettings, fused: bool) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bit (arXiv 2110.02861): 2 bytes a weight instead of 8."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, **_usual(settings))


def _paged_adamw_8bit(
    groups: Groups, settings: OptimizerSettings, fused: bool
) -> torch.optim.Optimizer:
    """The same, with moments in memory that CUDA takes out of the device when there is no room
    (arXiv 2305.14314, section 3)."""
    import bitsandbytes

    return bitsandbytes.optim.PagedAdamW8bit(groups, **_usual(settings))


def page_out(optimizer: torch.optim.Optimizer) -> None:
    """Have the moments of a paged optimizer, which were loaded into the device, lie where it puts
    those that it makes. For any other optimizer nothing happens."""
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, state in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in state and not getattr(state[name], "is_paged", False):
                paged = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)  # type: ignore[attr-defined]
                state[name] = paged.copy_(state[name])


def _adafactor(groups: Groups, settings: OptimizerSettings, fused: bool) -> torch.optim.Optimizer:
    """Adafactor (arXiv 1804.04235): the second moment as rows times columns, no first one."""
    decay = {"weight_decay": settings.weight_decay}
    return Adafactor(groups, **{**decay, **settings.arguments})


def _prodigy(groups: Groups, settings: OptimizerSettings, fused: bool) -> torch.optim.Optimizer:
    """Prodigy (arXiv 2306.06101): finds its own rate; the learning rate multiplies it."""
    import prodigyopt

    return prodigyopt.Prodigy(groups, **_usual(settings))


def _schedule_free(
    groups: Groups, settings: OptimizerSettings, fused: bool
) -> torch.optim.Optimizer:
    """Schedule-free AdamW (arXiv 2405.15682): averages the weights instead of a falling rate."""
    import schedulefree

    return schedulefree.AdamWScheduleFree(groups, **_usual(settings))


def _lion(groups: Groups, settings: OptimizerSettings, fused: bool) -> torch.optim.Optimizer:
    """Lion (arXiv 2302.06675): the sign of the momentum; wants a third to a tenth of the rate."""
    import lion_pytorch

    return lion_pytorch.Lion(groups, **_usual(settings))


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerSettings, bool], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedule_free_adamw": _schedule_free,
    "lion": _lion,
}
PACKAGES = {  # what the optimizers need beside torch: module -> as pip knows it
    "adamw_8bit": "bitsandbytes",
    "paged_adamw_8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "schedule_free_adamw": "schedulefree",
    "lion": "lion_pytorch",
}


def _usual(settings: OptimizerSettings) -> dict[str, Any]:
    """What every relative of Adam takes; given arguments go on top."""
    usual: dict[str, Any] = {"weight_decay": settings.weight_decay}
    if settings.betas is not None:
        usual["betas"] = settings.betas
    return {**usual, **settings.arguments}


def hints(settings: OptimizerSettings, phases: Phases) -> Iterator[str]:
    """Settings that this optimizer is hardly meant to have."""
    rates = {"training.learning_rate": settings.learning_rate}
    if phases.pivotal:
        rates["training.pivotal_learning_rate"] = settings.pivotal_learning_rate
    if settings.optimizer == "prodigy":
        for key, rate in rates.items():
            if rate < 0.1:
                yield f"{key}={rate:g} multiplies the rate that prodigy finds itself: 1.0 is meant"
    if settings.optimizer == "schedule_free_adamw" and settings.schedule != "constant":
        yield (
            f"training.schedule={settings.schedule}: schedule_free_adamw does without a falling "
            "rate; constant is meant"
        )
    if settings.optimizer == "adafactor" and settings.betas is not None:
        yield "training.betas: adafactor has none"


def counts_of(optimizer: torch.optim.Optimizer) -> Groups:
    """What an optimizer keeps in its groups but for their parameters and learning rates."""
    other = ("params", "lr", "initial_lr", "name")
    return [
        {key: value for key, value in group.items() if key not in other}
        for group in optimizer.param_groups
    ]


def restore_counts(optimizer: torch.optim.Optimizer, counts: Groups) -> None:
    """Put back what `counts_of` gave."""
    for group, own in zip(optimizer.param_groups, counts, strict=True):
        group.update(own)


def start_afresh(optimizer: torch.optim.Optimizer, counts: Groups) -> None:
    """Forget all moments and averages; `counts`: the groups' own of the beginning (`counts_of`).

    Weights and learning rates stay; what a schedule-free optimizer goes on from is its average.
    """
    if callable(average := getattr(optimizer, "eval", None)):
        average()
    optimizer.state.clear()
    restore_counts(optimizer, counts)
    if callable(train := getattr(optimizer, "train", None)):
        train()


@torch.no_grad()
def settle(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Parameters that are trained no more become what the optimizer says is their result.

    So that what follows is trained with those weights that will be used. (A schedule-free
    optimizer trains at a point y of its own and means the average x; where z, which it moves, is x
    too, all three stay the same.) For any other optimizer nothing happens.
    """
    with weights_to_look_at(optimizer):
        results = [parameter.clone() for parameter in parameters]
    for parameter, result in zip(parameters, results, strict=True):
        state = optimizer.state.get(parameter, {})
        if "z" in state:
            parameter.copy_(result)
            state["z"].copy_(result)


@contextmanager
def weights_to_look_at(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the weights are those that the optimizer says are the result so far.

    A schedule-free optimizer (arXiv 2405.15682) trains at a point y and means the average x; its
    own way there and back rounds, so y is kept and put back: looking changes nothing. For any other
    optimizer nothing happens.
    """
    if not callable(getattr(optimizer, "eval", None)):
        yield
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = [weight.detach().clone() for weight in weights]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
