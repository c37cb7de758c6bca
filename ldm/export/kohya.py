"""An adapter as one file in the naming of kohya's sd-scripts and LyCORIS.

What A1111, ComfyUI, sdnext and InvokeAI open. A layer's name is that of its network and its path
with underscores. UNets of SDXL go by their original (LDM) names, others by diffusers', as in
https://github.com/kohya-ss/sd-scripts (networks/lora.py). Metadata: its `ss_*` keys, and
https://github.com/Stability-AI/ModelSpec.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.export.lora import TensorFile, with_layers
from ldm.models.adapters import Adapter
from ldm.models.adapters.kohya import layer_names
from ldm.models.files.keys import Kind
from ldm.models.files.single_file import ABOUT

# Of a UNet's kind: what sd-scripts and ModelSpec call it.
BASES: dict[Kind, tuple[str, str]] = {
    "sd1": ("sd_v1", "stable-diffusion-v1"),
    "sd2": ("sd_v2", "stable-diffusion-v2"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
# peft's names of a layer's tensors, where they differ.
TENSORS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}


def kohya_file(adapters: Mapping[str, Adapter], kind: Kind, about: Mapping[str, Any]) -> TensorFile:
    """One file with the adapters of "unet", "text_encoder", ... of a model of this kind.

    about: of `dreambooth.json`, for the metadata. UserError: OFT, which the naming has only of
    another kind (turning outputs; peft's turns inputs).
    """
    if not can_be_kohya(adapters):
        raise UserError(
            "kohya's naming has no OFT of the kind that was trained; take --format lora, or the "
            "model that it is merged into"
        )
    adapters = with_layers(adapters)
    tensors: dict[str, Tensor] = {}
    for network, adapter in adapters.items():
        for name, full in layer_names(network, adapter.network, adapter.layers, kind).items():
            own = _layer_tensors(adapter.state_dict_of(name), scale_of(adapter.layers[name]))
            tensors |= {f"{full}.{key}": tensor for key, tensor in own.items()}
    told = {**_ss_metadata(adapters, kind, about), **_spec(kind, about)}
    return TensorFile(tensors, {**told, ABOUT: json.dumps(dict(about))})


def can_be_kohya(adapters: Mapping[str, Adapter]) -> bool:
    """Whether readers of this naming know the kind of these adapters: all but OFT."""
    layers = [layer for adapter in adapters.values() for layer in adapter.layers.values()]
    return not any(hasattr(layer, "oft_R") for layer in layers)


def scale_of(layer: Any) -> float:
    """What the product of a layer's factors is multiplied by: alpha / rank, or what is for it."""
    (scale,) = layer.scaling.values()
    return float(scale)


def _layer_tensors(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A layer's tensors by the names of the field, with an alpha that readers divide by the rank.

    The rank is that of the factors; so rsLoRA's scale, alpha / sqrt(rank), is in the alpha.
    """
    tensors = {TENSORS.get(key, key): tensor for key, tensor in state.items()}
    if (vector := tensors.get("dora_scale")) is not None:
        # One number a row, to be multiplied with the weight [out, in(, k, k)].
        shape = tensors["lora_up.weight"].shape
        tensors["dora_scale"] = vector.reshape(-1, *[1] * (len(shape) - 1))
    rank = next((state[key].shape[0] for key in state if key in RANKED), None)
    if rank is None:  # of LoKr without factors: readers take the scale for 1
        tensors["lokr_w1"] = scale * tensors["lokr_w1"]
        rank, scale = 1, 1.0
    return {**tensors, "alpha": torch.tensor(scale * rank)}


RANKED = ("lora_A.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # [rank, ...]


def _ss_metadata(
    adapters: Mapping[str, Adapter], kind: Kind, about: Mapping[str, Any]
) -> dict[str, str]:
    config = next(iter(adapters.values())).config_of_adapter.to_dict()  # type: ignore[union-attr]
    algorithm = str(getattr(config.get("peft_type"), "value", "LORA")).lower()
    rank, alpha = config.get("r"), config.get("lora_alpha", config.get("alpha"))
    arguments = {} if algorithm == "lora" else {"algo": algorithm}
    return {
        "ss_network_module": "networks.lora" if algorithm == "lora" else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
        "ss_base_model_version": BASES[kind][0],
        "ss_v2": str(kind == "sd2"),
        "ss_sd_model_name": str(about.get("base")),
        "ss_output_name": str(about.get("run")),
        "ss_steps": str(about.get("step")),
    }


def _spec(kind: Kind, about: Mapping[str, Any]) -> dict[str, str]:
    identifier, noun = about.get("identifier"), about.get("class_noun")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{BASES[kind][1]}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": f"{noun} {identifier}",
        "modelspec.trigger_phrase": f"{identifier} {noun}",
    }
