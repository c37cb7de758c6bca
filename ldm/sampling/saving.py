"""Drawing in less memory than a whole model takes: one network on the device at a time."""

import torch

from ldm.models.base import BaseModel


def save_memory(base: BaseModel, device: torch.device, unet_stays: bool = False) -> None:
    """Have `base` draw on `device` with one of its networks there at a time; it lies on the CPU.

    Each is moved there when it is called, and back when the next one is: slower by that. The VAE
    decodes one picture at a time, pictures larger than those it was made for in tiles whose seams
    are blended (so those differ a little). unet_stays: the UNet is moved once, now, and stays.
    """
    from accelerate import cpu_offload_with_hook

    hook, hooks = None, []
    for encoder in base.text.encoders:
        _, hook = cpu_offload_with_hook(encoder, device, prev_module_hook=hook)
        hooks.append(hook)
    if unet_stays:
        base.unet.to(device)
        base.unet.register_forward_pre_hook(lambda *_: hooks[-1].offload())
    else:
        _, hook = cpu_offload_with_hook(base.unet, device, prev_module_hook=hook)
        hooks.append(hook)
    _, last = cpu_offload_with_hook(base.vae, device, prev_module_hook=hooks[-1])
    hooks[0].hook.prev_module_hook = last  # the next batch begins where this one ends
    base.vae.enable_slicing()
    base.vae.enable_tiling()
