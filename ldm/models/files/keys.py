"""Names of weights: those of diffusers, and those of the original single-file checkpoints (LDM).

One set of rules serves both directions: for each tensor of a network it tells the `Place` in a
file. Original names: https://github.com/CompVis/stable-diffusion (UNet, VAE, CLIP),
https://github.com/mlfoundations/open_clip (the text encoder of 2.x, the second one of XL),
https://github.com/Stability-AI/generative-models (XL).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["sd1", "sd2", "sdxl"]
Family = Literal["unet", "vae", "clip", "open_clip"]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = (
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
)
_NETWORKS: dict[str, tuple[str, Family]] = {"unet": (UNET, "unet"), "vae": (VAE, "vae")}
# Kind -> part -> what its names begin with in a file, and whose rules they follow.
LAYOUTS: dict[Kind, dict[str, tuple[str, Family]]] = {
    "sd1": {**_NETWORKS, "text_encoder": (CLIP, "clip")},
    "sd2": {**_NETWORKS, "text_encoder": (OPEN_CLIP, "open_clip")},
    "sdxl": {
        **_NETWORKS,
        "text_encoder": (XL_CLIP, "clip"),
        "text_encoder_2": (XL_OPEN_CLIP, "open_clip"),
    },
}

_UNET_MODULES = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_MODULES = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_THIRDS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}  # of OpenCLIP's one projection


@dataclass(frozen=True)
class Place:
    """Where a file keeps a tensor: its name there, and how it is stored."""

    name: str
    convolution: bool = False  # 1x1: [out, in] is stored as [out, in, 1, 1]
    transposed: bool = False
    third: int | None = None  # of a tensor that holds query, key and value, one below the other

    def shape(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape in the file of a tensor that has this one in the network."""
        own = tuple(shape)
        if self.convolution:
            return (*own, 1, 1)
        if self.transposed:
            return own[::-1]
        return own if self.third is None else (3 * own[0], *own[1:])

    def read(self, stored: Tensor) -> Tensor:
        """A file's tensor -> the network's, a view of it."""
        if self.convolution:
            return stored[:, :, 0, 0]
        if self.transposed:
            return stored.T
        return stored if self.third is None else stored.chunk(3)[self.third]


def kind_of(parts: Mapping[str, Any]) -> Kind:
    """Whose names the parts of a model get.

    Two text encoders are XL's; OpenCLIP's activation is GELU, CLIP's its quick form.
    """
    if "text_encoder_2" in parts:
        return "sdxl"
    return "sd1" if parts["text_encoder"].config.hidden_act == "quick_gelu" else "sd2"


def original_layers(keys: Iterable[str], layers: Iterable[str]) -> dict[str, str]:
    """The original name of each of a UNet's `layers`; keys: of its state dict, all. KeyError."""
    modules = _unet_modules(list(keys))
    places = {layer: _place("", f"{layer}.weight", modules) for layer in layers}
    return {layer: place.name.removesuffix(".weight") for layer, place in places.items()}


def places_of(kind: Kind, part: str, keys: Iterable[str]) -> dict[str, Place]:
    """Place in a file of each tensor of a part, by its name in the part's state dict.

    `keys`: all of these names; how many levels and layers there are is read off them. KeyError: one
    that the original networks do not have.
    """
    keys = list(keys)
    prefix, family = LAYOUTS[kind][part]
    if family == "clip":
        return {key: Place(prefix + key.removeprefix("text_model.")) for key in keys}
    if family == "open_clip":
        return {key: _open_clip_place(prefix, key.removeprefix("text_model.")) for key in keys}
    modules = _unet_modules(keys) if family == "unet" else _vae_modules(keys)
    return {key: _place(prefix, key, modules) for key in keys}


def stored_as(places: Mapping[str, Place]) -> dict[str, list[str]]:
    """Name in the file -> the network's tensors that it holds: one, or query, key and value."""
    found: dict[str, list[str]] = {}
    for key, place in sorted(places.items(), key=lambda item: item[1].third or 0):
        found.setdefault(place.name, []).append(key)
    return found


def to_stored(
    places: Mapping[str, Place], tensors: Mapping[str, Tensor], keys: list[str]
) -> Tensor:
    """The file's tensor that holds these tensors of the network, in the order of `stored_as`."""
    place, tensor = places[keys[0]], tensors[keys[0]]
    if place.third is not None:
        return torch.cat([tensors[key] for key in keys])
    if place.convolution:
        return tensor[:, :, None, None]
    return tensor.T if place.transposed else tensor


def _place(prefix: str, key: str, modules: Mapping[str, str]) -> Place:
    """The longest beginning of a key that is a known module is exchanged."""
    words = key.split(".")
    for end in range(len(words) - 1, 0, -1):
        module = modules.get(".".join(words[:end]))
        if module is not None:
            name = ".".join([module, *words[end:]])
            projection = ".mid.attn_1." in name and not module.endswith(".norm")
            return Place(prefix + name, convolution=projection and words[-1] == "weight")
    raise KeyError(key)


def _open_clip_place(prefix: str, key: str) -> Place:
    if key == "text_projection.weight":
        return Place(f"{prefix}text_projection", transposed=True)
    words = key.split(".")
    if words[:2] != ["encoder", "layers"]:
        for module, name in _OPEN_CLIP_MODULES.items():
            if key.startswith(module):
                return Place(prefix + name + key.removeprefix(module))
        raise KeyError(key)
    block, inside = f"{prefix}transformer.resblocks.{words[2]}.", ".".join(words[3:-1])
    third = _THIRDS.get(inside.removeprefix("self_attn."))
    if third is not None:
        return Place(f"{block}attn.in_proj_{words[-1]}", third=third)
    return Place(f"{block}{_OPEN_CLIP_LAYER[inside]}.{words[-1]}")


def _count(keys: Iterable[str], prefix: str) -> int:
    """How many numbered modules there are: `prefix`.0, `prefix`.1, ..."""
    start = prefix + "."
    return len({key[len(start) :].split(".")[0] for key in keys if key.startswith(start)})


def _unet_modules(keys: list[str]) -> dict[str, str]:
    levels = _count(keys, "down_blocks")
    layers = _count(keys, "down_blocks.0.resnets")
    found = dict(_UNET_MODULES)
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first_in, first_out = 1 + level * (layers + 1), level * (layers + 1)
        for layer in range(layers):
            resnets[f"{down}.resnets.{layer}"] = f"input_blocks.{first_in + layer}.0"
            found[f"{down}.attentions.{layer}"] = f"input_blocks.{first_in + layer}.1"
        found[f"{down}.downsamplers.0.conv"] = f"input_blocks.{first_in + layers}.0.op"
        for layer in range(layers + 1):
            resnets[f"{up}.resnets.{layer}"] = f"output_blocks.{first_out + layer}.0"
            found[f"{up}.attentions.{layer}"] = f"output_blocks.{first_out + layer}.1"
        after = 2 if _count(keys, f"{up}.attentions") else 1
        found[f"{up}.upsamplers.0.conv"] = f"output_blocks.{first_out + layers}.{after}.conv"
    return found | _inside(resnets, _UNET_RESNET)


def _vae_modules(keys: list[str]) -> dict[str, str]:
    levels = _count(keys, "encoder.down_blocks")
    found = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    attentions, shortcuts = {}, {}
    for half, side, sampler in (("encoder", "down", "down"), ("decoder", "up", "up")):
        found |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        found[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        attentions[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        for number in (0, 1):
            found[f"{half}.mid_block.resnets.{number}"] = f"{half}.mid.block_{number + 1}"
        for level in range(levels):
            block = f"{half}.{side}_blocks.{level}"
            own = level if side == "down" else levels - 1 - level  # LDM counts both from pixels
            original = f"{half}.{side}.{own}"
            for layer in range(_count(keys, f"{block}.resnets")):
                resnet = f"{block}.resnets.{layer}"
                found[resnet] = f"{original}.block.{layer}"
                shortcuts[resnet] = found[resnet]
            found[f"{block}.{sampler}samplers.0.conv"] = f"{original}.{sampler}sample.conv"
    return (
        found
        | _inside(attentions, _VAE_ATTENTION)
        | _inside(shortcuts, {"conv_shortcut": "nin_shortcut"})
    )


def _inside(modules: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """The modules within each of `modules`, by their names there and in the original."""
    return {
        f"{module}.{inner}": f"{original}.{name}"
        for module, original in modules.items()
        for inner, name in names.items()
    }
