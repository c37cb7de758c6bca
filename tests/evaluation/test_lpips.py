"""LPIPS against torchmetrics' own and the paper's formula, with random backbones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ldm.errors import UserError
from ldm.evaluation import lpips as module
from ldm.evaluation.lpips import LPIPS, load_lpips

NETS = {"vgg16": "vgg", "alex": "alex"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """net -> a folder with random weights in torchvision's layout, classifier and all."""
    made = {}
    for net, (build, *_) in module._NETS.items():
        generator = torch.Generator().manual_seed(1)
        state = {}
        for key, value in build().state_dict().items():
            # He's initialisation: activations keep their size, so that every layer counts.
            deviation = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
            state[f"features.{key}"] = torch.randn(value.shape, generator=generator) * deviation
        state["classifier.6.bias"] = torch.zeros(10)
        made[net] = tmp_path_factory.mktemp(net)
        save_file(state, made[net] / "model.safetensors")
    return made


def pictures(n: int, side: int = 40) -> Tensor:
    return torch.rand(n, 3, side, side + 5, generator=torch.Generator().manual_seed(7)) * 2 - 1


def weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("net", NETS)
def test_it_is_torchmetrics_lpips(
    net: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips as reference

    features = module._NETS[net][0]()
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in weights(folders[net]).items() if "feat" in k}
    )
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: features)
    theirs = reference._LPIPS(net=NETS[net])  # type: ignore[arg-type]
    shown = pictures(3)
    measured = LPIPS(folders[net])
    ours = measured(shown)
    assert measured.name == f"lpips_{net}"
    assert ours.shape == (3, 3) and ours.dtype == np.float64
    assert (ours == ours.T).all() and (np.diag(ours) == 0).all()
    for i in range(3):
        for j in range(i):
            expected = float(theirs(shown[i : i + 1], shown[j : j + 1]))
            assert expected > 1e-4
            assert ours[i, j] == pytest.approx(expected, rel=1e-4)


# Channels of torchvision's networks; what follows is written from the papers, not from the code.
VGG: list[Any] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M"]
VGG += [512, 512, 512, "M", 512, 512, 512]
ALEX: list[Any] = [(64, 4, 2), "M", (192, 1, 2), "M", (384, 1, 1), (256, 1, 1), (256, 1, 1)]


def stages(net: str, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The five compared activations in float64: VGG's before each pooling, all of AlexNet's."""
    names = [key for key in state if key.startswith("features.") and key.endswith(".weight")]
    convolutions = sorted(int(name.split(".")[1]) for name in names)
    found = []
    for entry in VGG if net == "vgg16" else ALEX:
        if entry == "M":
            if net == "vgg16":
                found.append(x)
            x = functional.max_pool2d(x, 2 if net == "vgg16" else 3, 2)
            continue
        stride, padding = (1, 1) if net == "vgg16" else entry[1:]
        key = f"features.{convolutions.pop(0)}"
        weight, bias = state[f"{key}.weight"].double(), state[f"{key}.bias"].double()
        x = functional.conv2d(x, weight, bias, stride, padding).relu()
        if net == "alex":
            found.append(x)
    return found if net == "alex" else [*found, x]


@pytest.mark.parametrize("net", NETS)
def test_it_is_the_papers_formula(net: str, folders: dict[str, Path]) -> None:
    """d = sum over layers of the mean over places of |w (y - y0)|^2, w^2 the learned weights."""
    shown = pictures(2)
    shift, scale = ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
    x = (shown.double() - torch.tensor(shift).double().view(3, 1, 1)) / torch.tensor(
        scale
    ).double().view(3, 1, 1)
    parts = []
    layers = stages(net, weights(folders[net]), x)
    for found, head in zip(layers, module._read_heads(NETS[net]), strict=True):
        unit = found / (found.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
        apart = (unit[0] - unit[1]).square() * head[0].double()
        parts.append(float(apart.sum(dim=0).mean()))
    assert min(parts) > 0.01 * sum(parts), "every layer counts"
    assert LPIPS(folders[net])(shown)[0, 1] == pytest.approx(sum(parts), rel=1e-4)


def test_batches_and_chunks_change_nothing(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = pictures(5)
    whole = LPIPS(folders["alex"])(shown)
    monkeypatch.setattr(module, "_CHUNK", 100)
    assert np.allclose(LPIPS(folders["alex"], batch=2)(shown), whole, rtol=1e-5, atol=0)
    assert (whole[np.triu_indices(5, 1)] > 0).all()


def test_pictures_that_are_too_small_are_refused(folders: dict[str, Path]) -> None:
    for net, (_, _, _, least) in module._NETS.items():
        measured = LPIPS(folders[net])
        assert measured(pictures(1, least)).shape == (1, 1)
        with pytest.raises(ValueError, match=f"lpips_{net} needs {least} pixels"):
            measured(pictures(1, least - 1))


def test_torchvisions_own_file_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.save(weights(folders["alex"]), tmp_path / "alexnet-owt-7be5be79.pth")
    shown = pictures(2)
    assert (LPIPS(tmp_path)(shown) == LPIPS(folders["alex"])(shown)).all()


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{key}": value for key, value in state.items()}


def lose(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != "features.10.bias"}


@pytest.mark.parametrize("spoil", [rename, lose])
def test_a_folder_that_holds_something_else_is_refused(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"evaluation\.lpips.*one file of weights"):
        load_lpips(tmp_path)
    save_file(spoil(weights(folders["alex"])), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"evaluation\.lpips.*neither torchvision's"):
        load_lpips(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"evaluation\.lpips.*damaged"):
        load_lpips(tmp_path)


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    assert load_lpips(None) == (None, None)
    measured, reason = load_lpips(tmp_path / "nowhere")
    assert measured is None and reason is not None and "no such folder" in reason


def test_no_gradients_are_kept(folders: dict[str, Path]) -> None:
    measured = LPIPS(folders["alex"])
    assert not any(parameter.requires_grad for parameter in measured.backbone.parameters())
    assert isinstance(measured.backbone, nn.Sequential) and not measured.backbone.training
