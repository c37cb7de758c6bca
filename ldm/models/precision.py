"""Which arithmetic networks are computed in."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

AUTOCAST = {"fp32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# What CPUs call instructions that multiply bfloat16 (x86, ARM). Without them PyTorch computes it
# one number at a time: convolutions and products take 10 to 60 times as long as in fp32.
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def native_precision(device: str) -> str:
    """The fastest of AUTOCAST that a kind of device ("cpu", "cuda", ...) has instructions for.

    bf16-mixed rather than 16-mixed, which older CUDA GPUs are left with; fp32 where there is none.
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    if device != "cpu":
        return "fp32"
    able: Mapping[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # PyTorch 2.12 or later
    return "bf16-mixed" if any(able.get(name) for name in CPU_BF16) else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Arithmetic of "fp32", "bf16-mixed" or "16-mixed" on a device. ValueError: another one."""
    if precision not in AUTOCAST:
        raise ValueError(f"precision {precision!r} is none of {', '.join(AUTOCAST)}")
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
