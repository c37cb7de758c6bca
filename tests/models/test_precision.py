import types
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from ldm.config import Config
from ldm.models.precision import autocast, native_precision
from ldm.run.device import precision_of


def has(monkeypatch: pytest.MonkeyPatch, **able: Any) -> None:
    capabilities: Mapping[str, Any] = types.MappingProxyType({"architecture": "x86_64", **able})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_a_cpu_with_instructions_for_it_takes_bfloat16(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    has(monkeypatch, avx2=True, **{name: True})
    assert native_precision("cpu") == "bf16-mixed"


def test_a_cpu_without_takes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, avx2=True, avx512_f=True, avx512_bf16=False)
    assert native_precision("cpu") == "fp32"


def test_an_older_pytorch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_precision("cpu") == "fp32"


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_gpus(monkeypatch: pytest.MonkeyPatch, able: bool, expected: str) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return able or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert native_precision("cuda") == expected
    assert native_precision("mps") == "fp32"


def test_auto_is_the_device_that_the_run_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    config = Config()
    assert config.training.precision == "auto"
    config.trainer.accelerator = "cpu"
    assert precision_of(config) == "bf16-mixed"
    config.trainer.accelerator = "gpu"
    assert precision_of(config) == "16-mixed"
    config.training.precision = "fp32"
    assert precision_of(config) == "fp32"


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="fp8"):
        autocast(torch.device("cpu"), "fp8")
