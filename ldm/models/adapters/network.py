"""An adapter in a network: what of it is trained, saved and loaded; merging."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.adapters.rows import TokenRows
from ldm.models.adapters.settings import AdapterSettings
from ldm.models.adapters.targets import find_layers
from ldm.models.adapters.timestep_rank import TimestepRank
from ldm.models.quantised import QuantisedLinear
from ldm.randomness import seed_of

if TYPE_CHECKING:
    from peft import PeftConfig

EMBEDDING = "embedding"
NAME = "default"  # the adapter's, within peft
_IN_NAMES = re.compile(rf"\.{NAME}(?=\.|$)")


class Adapter(nn.Module):
    """What is trained in one network beside its frozen weights. It is called as the network is.

    Its parameters, and so state dict, optimizer and checkpoints, are the adapter's own, in float32
    and by the names of peft's `get_peft_model_state_dict`. The network is held but is no part of
    it; its mode and its device follow, and all other attributes are the network's.
    """

    def __init__(
        self,
        network: nn.Module,
        config: "PeftConfig | None",
        tokens: Sequence[int] = (),
        timestep_rank: TimestepRank | None = None,
    ) -> None:
        """Put peft's layers into `network`, in place; None for none.

        tokens: of a text encoder, those whose rows of the token embedding are trained too.
        timestep_rank: of a UNet, which components take part when; None: all always.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        super().__init__()
        self._held = (network,)  # in a tuple it is not registered as a part
        self.config_of_adapter = config
        network.requires_grad_(False)
        if config is not None:
            inject_adapter_in_model(config, network, NAME)
        self.layers: dict[str, BaseTunerLayer] = {}
        for name, layer in network.named_modules():
            if isinstance(layer, BaseTunerLayer):
                self.layers[name] = layer
        self.timestep_rank = timestep_rank
        if timestep_rank:
            timestep_rank.attach(network, (layer.lora_A[NAME] for layer in self.layers.values()))
        self.rows: list[TokenRows] = []  # of the token embedding, if any are trained
        if tokens:
            self.rows.append(TokenRows(self.get_input_embeddings(), tokens))
            self.set_input_embeddings(self.rows[0])
        self.is_merged = False
        self._kept: dict[str, Tensor] = {}  # the base's weights, while merged to be unmerged
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:  # not the base's own
                parameter.data = parameter.data.to(torch.float32)
                self._register(_peft_name(name), parameter)

    def _register(self, name: str, parameter: nn.Parameter) -> None:
        """By a dotted name: as deep in this module as it is in the network."""
        *path, last = name.split(".")
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                setattr(place, part, nn.Module())
            place = place._modules[part]  # type: ignore[assignment]
        place.register_parameter(last, parameter)

    @property
    def network(self) -> nn.Module:
        (network,) = self._held
        return network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_held"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        self.network.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)  # the parameters here are among the network's
        return super()._apply(fn, recurse)

    def enable_gradient_checkpointing(self) -> None:
        """Of a UNet."""
        own = self.timestep_rank.checkpoint if self.timestep_rank else None
        self.network.enable_gradient_checkpointing(own)  # type: ignore[operator]

    def layers_state(self) -> dict[str, Tensor]:
        """The state dict without rows of the token embedding."""
        own = self.state_dict()
        return {key: own[key] for key in own if key.rpartition(".")[2] != "rows"}

    def state_dict_of(self, layer: str) -> dict[str, Tensor]:
        """The tensors of one of `layers`, by their names within it."""
        own, inside = self.state_dict(), f"{layer}."
        return {key.removeprefix(inside): own[key] for key in own if key.startswith(inside)}

    def merge(self, share: float = 1.0, keep: bool = False) -> None:
        """Add what was learnt to the network's own weights and take peft's layers out of it.

        share: of the way from the network's own weights to what was learnt that they move. keep:
        the network's own weights, for `unmerge`; else it is for good, and takes no memory.
        With a `timestep_rank` that is another network: the whole rank at all timesteps.
        ValueError: it is merged already, or the weights are in few bits, where it would be lost.
        """
        if self.is_merged:
            raise ValueError("the adapter is merged already")
        if any(isinstance(x.get_base_layer(), QuantisedLinear) for x in self.layers.values()):
            raise ValueError("the network's weights are quantised: merge into the base's own")
        for name, layer in self.layers.items():
            base = layer.get_base_layer()
            own = base.weight.data
            if keep or share != 1:  # else it changes in place
                base.weight.data = own.clone()
            layer.merge()
            if share != 1:
                base.weight.data = torch.lerp(own, base.weight.data, share)
            if keep:
                self._kept[name] = own
        for rows in self.rows:
            own, learnt = rows.embedding.weight.data, rows.whole()
            rows.embedding.weight.data = learnt if share == 1 else torch.lerp(own, learnt, share)
            if keep:
                self._kept[EMBEDDING] = own
        self.take_out()
        self.is_merged = True

    def unmerge(self) -> None:
        """Undo `merge(keep=True)`: the network's weights are, bit for bit, what they were."""
        for name, layer in self.layers.items():
            layer.unmerge()  # forgets that it was merged; what it computes is only nearly right
            layer.get_base_layer().weight.data = self._kept.pop(name)
        for rows in self.rows:
            rows.embedding.weight.data = self._kept.pop(EMBEDDING)
        self.put_in()
        self.is_merged = False

    def take_out(self) -> None:
        """Leave the network with plain layers and embedding, and the weights that these hold."""
        for name, layer in self.layers.items():
            self._put(name, layer.get_base_layer())
        for rows in self.rows:
            self.set_input_embeddings(rows.embedding)

    def put_in(self) -> None:
        """Undo `take_out`."""
        for name, layer in self.layers.items():
            self._put(name, layer)
        for rows in self.rows:
            self.set_input_embeddings(rows)

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.network.get_submodule(parent), last, layer)


def _peft_name(name: str) -> str:
    """A parameter's name in the network without the adapter's; DoRA's vector is a layer there."""
    name = _IN_NAMES.sub("", name)
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def add_adapters(
    networks: Mapping[str, nn.Module],
    settings: AdapterSettings,
    seed: int = 0,
    encoders: Mapping[str, nn.Module] | None = None,
    tokens: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Adapter]:
    """Put an adapter into each of `networks` ("unet", "text_encoder", ...), which change in place.

    Their predictions stay what they are (but for rounding) until it is trained. seed: of the first
    weights. tokens: of `encoders`, which may be among `networks`, those whose rows of the token
    embedding are trained too. UserError: targets that match nothing, blocks of oft that do not fit.
    """
    found = find_layers(networks, settings.targets, settings.conv)
    adapters, tokens = {}, tokens or {}
    embedded = {name: encoder for name, encoder in (encoders or {}).items() if name in tokens}
    with torch.random.fork_rng(devices=[]):
        for place, (name, network) in enumerate({**networks, **embedded}.items()):
            config, ranks = None, settings.timestep_rank_of(name)
            if name in networks:
                if settings.kind == "oft":
                    _check_blocks(network, found[name], settings.sizes(name)[0])
                config = settings.peft_config(name, found[name])
            torch.manual_seed(seed_of(seed, "adapter", index=place))
            adapters[name] = Adapter(network, config, tokens.get(name, ()), ranks)
    return adapters


def _check_blocks(network: nn.Module, layers: list[str], size: int) -> None:
    for name in layers:
        layer = network.get_submodule(name)
        inputs: Any = getattr(layer, "in_channels", None) or layer.in_features
        if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
            raise UserError(
                f"adapter.targets: {name} is a 3x3 convolution, oft is for linear layers alone; "
                "leave it out, or take another adapter.kind"
            )
        if inputs % size:
            raise UserError(
                f"adapter.rank={size}: of oft it is the size of blocks, and {name} has {inputs} "
                "inputs, which is no multiple of it; 4 or 8 fit most models"
            )


@contextlib.contextmanager
def merged(adapters: Mapping[str, Adapter]) -> Iterator[None]:
    """Inside, the networks are plain, the adapters' weights added to theirs; then as before."""
    with contextlib.ExitStack() as undone:
        for adapter in adapters.values():
            adapter.merge(keep=True)
            undone.callback(adapter.unmerge)
        yield


@contextlib.contextmanager
def taken_out(adapters: Iterable[Adapter]) -> Iterator[None]:
    """Inside, the networks are those of the untouched base; then as before."""
    with contextlib.ExitStack() as undone:
        for adapter in adapters:
            adapter.take_out()
            undone.callback(adapter.put_in)
        yield


def exactly_mergeable(adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
    """Those that predict the same when they are merged: without a `timestep_rank`."""
    return {name: adapter for name, adapter in adapters.items() if not adapter.timestep_rank}
