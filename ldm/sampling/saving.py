"""Drawing in less memory than a whole model takes: one network on the device at a time."""

import torch

from ldm.models.base import BaseModel


def save_memory(base: BaseModel, device: torch.device) -> None:
    """Have `base` draw on `device` with one of its networks there at a time; it lies on the CPU.

    Each is moved there when it is called, and back when the next one is: slower by that. The VAE
    decodes one picture at a time, pictures larger than those it was made for in tiles whose seams
    are blended (so those differ a little).
    """
    from accelerate import cpu_offload_with_hook

    hook, hooks = None, []
    for network in (*base.text.encoders, base.unet, base.vae):
        _, hook = cpu_offload_with_hook(network, device, prev_module_hook=hook)
        hooks.append(hook)
    hooks[0].hook.prev_module_hook = hook  # the next batch begins where this one ends
    base.vae.enable_slicing()
    base.vae.enable_tiling()
