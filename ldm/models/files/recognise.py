"""Which kind of model a file's weights are of, told by names and shapes, never by its name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.errors import UserError
from ldm.models.files.keys import CLIP, LAYOUTS, OPEN_CLIP, UNET, VAE, XL_CLIP, XL_OPEN_CLIP, Kind

SHAPES = Mapping[str, tuple[int, ...]]
FIRST = f"{UNET}input_blocks.0.0.weight"  # [channels, channels of what the UNet reads, 3, 3]
# What is known by a piece of a name, and what is said of it.
_OTHERS = {
    r"lora_|\.lora\.|hada_w|lokr_w|oft_blocks|\.dora_scale": "a LoRA or another adapter; it "
    "belongs onto a base model, and is none",
    r"double_blocks\.\d": "a Flux model",
    r"joint_blocks\.\d": "a Stable Diffusion 3 model",
    r"^conditioner\.embedders\.0\.model\.": "the refiner of Stable Diffusion XL",
    r"^control_model\.|controlnet_cond_embedding": "a ControlNet",
    r"time_stack|motion_modules|temporal_transformer": "a video model",
    r"^(string_to_param|emb_params$|clip_[lg]$)": "the embedding of a textual inversion",
    r"^(unet\.)?(down_blocks|mid_block|up_blocks)\.": "a UNet with diffusers' names, one part of a "
    "folder; give the folder that it belongs to",
    r"^text_model\.|^text_encoder": "a text encoder alone",
}
_MORE_CHANNELS = {
    9: "an inpainting model",
    8: "a model that edits pictures (InstructPix2Pix)",
    7: "an upscaler",
    5: "a depth model",
}
SUPPORTED = "Stable Diffusion 1.x, 2.x and XL (base) are supported"
# What checkpoints hold that diffusers' networks never had: averaged weights, the noise schedule's
# tables, constants, what only training used, marks.
_LEFT_OVER = re.compile(
    r"model_ema\..*|(.*\.)?position_ids|.*\.logit_scale|.*\.text_projection(\.weight)?"
    r"|.*\.attn_mask|(first_stage_model\.)?loss\..*|(alphas_cumprod|posterior_|sqrt_|log_).*"
    r"|betas|lvlb_weights|logvar|scale_factor|denoiser\.sigmas|v_pred|ztsnr"
)
_LAST_BLOCK = re.compile(re.escape(OPEN_CLIP) + r"transformer\.resblocks\.(\d+)\.")


def recognise(path: Path, shapes: SHAPES) -> Kind:
    """Stable Diffusion 1.x, 2.x or XL. UserError: another kind of model, or not all of one."""
    for pattern, what in _OTHERS.items():
        if any(re.search(pattern, name) for name in shapes):
            raise UserError(f"model {path}: this is {what}; {SUPPORTED}")
    if FIRST not in shapes:
        if _has(shapes, VAE) or _has(shapes, "encoder.") or _has(shapes, "decoder."):
            raise UserError(
                f"model {path}: this is a VAE alone; give it as model.vae, beside a model.base"
            )
        raise UserError(
            f"model {path}: none of the names in it are those of a model (such as "
            f"{next(iter(shapes), 'none at all')}); {SUPPORTED}"
        )
    channels = shapes[FIRST][1]
    if channels in _MORE_CHANNELS:
        raise UserError(
            f"model {path}: this is {_MORE_CHANNELS[channels]} (its UNet reads {channels} "
            f"channels); {SUPPORTED}"
        )
    if _has(shapes, XL_CLIP) or _has(shapes, XL_OPEN_CLIP):
        kind: Kind = "sdxl"
    elif _has(shapes, OPEN_CLIP):
        kind = "sd2"
    elif _has(shapes, CLIP):
        kind = "sd1"
    else:
        raise UserError(
            f"model {path}: a UNet without a text encoder; get the whole checkpoint ({SUPPORTED})"
        )
    for part, (prefix, _) in LAYOUTS[kind].items():
        if not _has(shapes, prefix):
            raise UserError(f"model {path}: has no {part} ({prefix}*); get the whole checkpoint")
    return kind


def unexpected(names: Iterable[str], expected: set[str]) -> list[str]:
    """The names that are neither expected nor known to be left over, sorted.

    Of the text encoder of 2.x, whose last block is not used, one block more may be there.
    """
    blocks = [int(found[1]) for name in expected if (found := _LAST_BLOCK.match(name))]
    unused = f"{OPEN_CLIP}transformer.resblocks.{max(blocks) + 1}." if blocks else None
    return sorted(
        name
        for name in names
        if name not in expected
        and not _LEFT_OVER.fullmatch(name)
        and not (unused and name.startswith(unused))
    )


def _has(shapes: SHAPES, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)
