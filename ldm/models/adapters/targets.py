"""Which layers of a network get an adapter."""

import difflib
from collections.abc import Mapping, Sequence

from torch import nn

from ldm.errors import UserError

# Of the UNet, then of CLIP text encoders.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def find_layers(
    networks: Mapping[str, nn.Module], targets: Sequence[str] = (), conv: bool = False
) -> dict[str, list[str]]:
    """Names of the layers to adapt, by the name of their network, in the networks' order.

    targets: names of layers say which ("to_k", "ff.net.2"; none: the projections of attention),
    names of blocks where ("up_blocks.0.attentions.1", "mid_block", "attn2"; none: everywhere). A
    network in which no target is gets no layers. conv: the 3x3 convolutions there too. UserError:
    a target that is in no network, naming near matches; targets that leave nothing of a network.
    """
    inside = {name: _adaptable(network) for name, network in networks.items()}
    _check_known(targets, inside)
    found = {}
    for name, layers in inside.items():
        kinds = [target for target in targets if any(_is_layer(key, target) for key in layers)]
        blocks = [target for target in targets if any(_is_within(key, target) for key in layers)]
        if targets and not kinds and not blocks:
            raise UserError(
                f"adapter.targets={list(targets)}: none is in the {_words(name)}; name layers or "
                "blocks of it too" + _leave_out(name)
            )
        found[name] = [
            key
            for key, layer in layers.items()
            if (not blocks or any(_is_within(key, block) for block in blocks))
            and (
                any(_is_layer(key, kind) for kind in kinds or ATTENTION) or conv and _is_3x3(layer)
            )
        ]
        if not found[name]:
            raise UserError(
                f"adapter.targets={list(targets)}: of the {_words(name)} no layer is left: there "
                f"is no {', '.join(kinds or ATTENTION)} in {', '.join(blocks) or 'it'}"
            )
    return found


def _adaptable(network: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv2d)
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}


def _is_layer(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _is_within(name: str, target: str) -> bool:
    return f".{target}." in f".{name}"


def _is_3x3(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1


def _words(network: str) -> str:
    return {"unet": "UNet"}.get(network, network.replace("_", " "))


def _leave_out(network: str) -> str:
    return ", or set model.train_text_encoder=false" if network.startswith("text_encoder") else ""


def _check_known(targets: Sequence[str], inside: Mapping[str, Mapping[str, nn.Module]]) -> None:
    names = [name for layers in inside.values() for name in layers]
    for target in targets:
        if any(_is_layer(name, target) or _is_within(name, target) for name in names):
            continue
        depth = target.count(".") + 1
        parts = [name.split(".") for name in names]
        known = {
            ".".join(part[start : start + depth])
            for part in parts
            for start in range(len(part) - depth + 1)
        }
        near = difflib.get_close_matches(target, sorted(known), n=3, cutoff=0.5)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise UserError(
            f"adapter.targets={target}: no layer or block of this name in the "
            f"{' or the '.join(map(_words, inside))}{hint}"
        )
