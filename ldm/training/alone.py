"""An optimizer that steps one parameter at a time: what that saves, and what it lets be rounded."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.randomness import seed_of


class SteppedAlone:
    """Steps the parameters of an optimizer one by one, and frees each one's gradient.

    For optimizers whose parameters do not know of each other: the numbers are those of one step of
    all. A parameter in bfloat16 is float32 for its step, as its moments are throughout, and the
    result is rounded stochastically; seed: of the bits that decide.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.optimizer, self.seed = optimizer, seed
        groups = [group["params"] for group in optimizer.param_groups]
        pairs = ((place, p) for place, group in enumerate(groups) for p in group)
        self._places = {p: (place, index) for index, (place, p) in enumerate(pairs)}

    @torch.no_grad()
    def step(self, parameter: nn.Parameter, number: int) -> None:
        """Optimizer step `number`, 0, 1, ..., of a parameter that has a gradient."""
        if parameter.dtype != torch.bfloat16:
            self._step(parameter, parameter)
            parameter.grad = None
            return
        whole = nn.Parameter(parameter.float())
        assert parameter.grad is not None
        whole.grad, parameter.grad = parameter.grad.float(), None
        state = self.optimizer.state
        if parameter in state:
            state[whole] = state.pop(parameter)
        self._step(parameter, whole)
        state[parameter] = state.pop(whole)
        whole.grad = None
        seed = seed_of(self.seed, "rounding", number, self._places[parameter][1])
        parameter.copy_(round_stochastically(whole, seed))

    def step_all(self, number: int) -> None:
        """Of all parameters that have gradients."""
        for parameter in self._places:
            if parameter.grad is not None:
                self.step(parameter, number)

    def _step(self, parameter: nn.Parameter, stepped: nn.Parameter) -> None:
        """With the settings of the parameter's group."""
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[self._places[parameter][0]], "params": [stepped]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups


def round_stochastically(values: Tensor, seed: int) -> Tensor:
    """float32 -> bfloat16, up or down by chance, so that the mean is right.

    Up with the probability that is the part of the way up (arXiv 2010.06192, section 3): a change
    that is smaller than half of the last place, which rounding to the nearest always loses, is made
    as often as it has to be. The bits are drawn on the values' own device, where all other draws of
    the project are made on the CPU: they are as many as the weights.
    """
    bits = torch.Generator(values.device).manual_seed(seed)
    rounded = torch.empty_like(values, dtype=torch.int32).random_(0, 1 << 16, generator=bits)
    # A bfloat16 is the upper half of a float32; what is added carries into it or not.
    rounded.add_(values.detach().view(torch.int32)).bitwise_and_(~0xFFFF)
    return rounded.view(torch.float32).to(torch.bfloat16)


class FusedBackward:
    """Steps each parameter as soon as its gradient is there: gradients never exist all at once.

    Whether a step may be made at all is decided by its loss, before the first gradient.
    """

    def __init__(
        self,
        alone: SteppedAlone,
        parameters: Iterable[nn.Parameter],
        number: Callable[[], int],
    ) -> None:
        """number: tells which optimizer step, 0, 1, ..., is at hand."""
        self.alone, self.number = alone, number
        self._norms: list[Tensor] = []
        self._good = False
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._step)

    def begin(self, loss: Tensor) -> None:
        """Before the backward pass. Without a finite loss it changes no weight."""
        self._norms, self._good = [], bool(loss.isfinite())

    def _step(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        self._norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        if self._good:
            self.alone.step(parameter, self.number())
        parameter.grad = None

    def norm(self) -> Tensor:
        """Of the whole gradient, after the backward pass; NaN where nothing was stepped.

        UserError: it is not finite, and weights are stepped already.
        """
        norm = norm_of(self._norms)
        if not self._good:
            return torch.full_like(norm, torch.nan)
        if not norm.isfinite():
            raise UserError(
                f"step {self.number() + 1}: the gradient of a finite loss is not finite, and "
                "training.fused_backward=true has changed weights by then; go on from the last "
                "save with training.fused_backward=false, which skips such a step"
            )
        return norm


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm over all of them, float32."""
    if any(gradient.dtype != torch.float32 for gradient in gradients):
        gradients = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
    return torch.nn.utils.get_total_norm(gradients)


def one_by_one(
    optimizer: torch.optim.Optimizer, seed: int, fused: bool, number: Callable[[], int]
) -> tuple[SteppedAlone | None, FusedBackward | None]:
    """What steps parameters one by one, where they are in bfloat16 or `fused`; and what has them
    stepped in the backward pass, where `fused`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not fused and all(parameter.dtype == torch.float32 for parameter in parameters):
        return None, None
    alone = SteppedAlone(optimizer, seed)
    return alone, FusedBackward(alone, parameters, number) if fused else None
