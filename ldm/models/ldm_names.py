"""What the blocks of a UNet are called in the original implementation (LDM), by diffusers' names.

Files for single-file tools use these for SDXL. Source: the order in which
https://github.com/Stability-AI/generative-models (sgm/modules/diffusionmodules/openaimodel.py)
builds its `input_blocks`, `middle_block` and `output_blocks`.
"""

from collections.abc import Mapping
from typing import Any

AROUND = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def block_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' name of each block of a UNet -> LDM's; config: the UNet's configuration."""
    names, layers = dict(AROUND), int(config["layers_per_block"])
    place = 1  # of input_blocks; 0 is conv_in
    for i in range(len(config["down_block_types"])):
        for j in range(layers):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{place}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
            place += 1
        names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
        place += 1
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(layers + 1):
            place = i * (layers + 1) + j
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{place}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
        after = 2 if "Attn" in kind else 1
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{place}.{after}.conv"
    return names


def ldm_name(name: str, blocks: Mapping[str, str]) -> str:
    """LDM's name of a UNet's layer; blocks: `block_names`. KeyError: it is in none of them."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        block, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if block in blocks:
            inner = RESNET.get(rest, rest) if ".resnets." in f".{block}." else rest
            return f"{blocks[block]}.{inner}".removesuffix(".")
    raise KeyError(name)
