"""How unlike two pictures look: LPIPS, from VGG-16's or AlexNet's features."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.hub import Missing, find, weight_file

log = logging.getLogger(__name__)

_CHUNK = 1 << 16  # features compared at a time: with 8 x 8 pictures 16 MiB


def _vgg16() -> nn.Sequential:
    """VGG-16 (arXiv 1409.1556, D) up to its last ReLU, numbered as torchvision's `features`."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    """AlexNet (arXiv 1404.5997) up to its last ReLU, numbered as torchvision's `features`."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
    )


# Net -> its layers, those of them that are compared, torchmetrics' name, least pixels a side.
_NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], str, int]] = {
    "vgg16": (_vgg16, (3, 8, 15, 22, 29), "vgg", 16),
    "alex": (_alexnet, (1, 4, 7, 9, 11), "alex", 31),
}


class LPIPS:
    """LPIPS 0.1 (arXiv 1801.03924, eq. 1) of every pair of pictures.

    The learned weights of the channels, the scaling of the input and the normalisation are
    torchmetrics'; the backbone's weights are torchvision's (which itself is not needed). name:
    "lpips_vgg16" or "lpips_alex", by what `source` holds; scores of different nets differ.
    """

    def __init__(self, source: str | Path, device: str | torch.device = "cpu", batch: int = 8):
        """Load the backbone from a folder with one file of weights, or a hub id.

        timm/vgg16.tv_in1k has torchvision's VGG-16 on the hub. Keys are torchvision's,
        "features.0.weight"; what is not a feature (the classifier) is left. Missing: see `find`.
        UserError: the folder holds another network. batch: pictures whose features are held at a
        time, times two; VGG-16's take 130 MiB per picture of 512 x 512 pixels.
        """
        from torchmetrics.functional.image.lpips import ScalingLayer

        state = _read_features(find("lpips", source))
        net = _net_of(state, source)
        build, self.taps, heads, self.least = _NETS[net]
        self.name = f"lpips_{net}"
        with torch.device("meta"):
            backbone = build()
        backbone.load_state_dict(state, assign=True)
        self.backbone = backbone.float().requires_grad_(False).eval().to(device)
        self.scale = ScalingLayer().to(device)
        self.heads = [head.to(device) for head in _read_heads(heads)]
        self.device = torch.device(device)
        self.batch = batch

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> np.ndarray:
        """Distances N x N, float64, of pictures [N, 3, H, W] in [-1, 1]; 0 on the diagonal.

        With more than `batch` pictures features are computed anew for every two batches, so that
        memory does not grow with N. ValueError: too small, H or W under 16 (AlexNet 31) pixels.
        """
        if min(pictures.shape[2:]) < self.least:
            raise ValueError(
                f"{self.name} needs {self.least} pixels a side, got {tuple(pictures.shape)}"
            )
        result = np.zeros((len(pictures), len(pictures)))
        starts = range(0, len(pictures), self.batch)
        for i in starts:
            left = self._features(pictures[i : i + self.batch])
            for j in starts[i // self.batch :]:
                right = left if i == j else self._features(pictures[j : j + self.batch])
                block = _squared_distances(left, right)
                result[i : i + len(block), j : j + block.shape[1]] = block
                result[j : j + block.shape[1], i : i + len(block)] = block.T
        return result

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> per layer [B, C x H x W]; squared distances of these add up to LPIPS."""
        from torchmetrics.functional.image.lpips import _normalize_tensor

        states = self.scale(pictures.to(self.device, torch.float32))
        found: list[Tensor] = []
        for place, layer in enumerate(self.backbone):
            states = layer(states)
            if place in self.taps:
                weight = self.heads[len(found)] / states[0, 0].numel()  # mean over H x W
                found.append((_normalize_tensor(states) * weight.sqrt()).flatten(1))
        return found


def load_lpips(
    source: str | Path | None, device: str | torch.device = "cpu", batch: int = 8
) -> tuple[LPIPS | None, str | None]:
    """Load LPIPS if it can be had: (it, None), else (None, reason why it is missing).

    source: see `LPIPS`; None: (None, None). UserError: a folder is there and holds something else.
    """
    if source is None:
        return None, None
    try:
        return LPIPS(source, device, batch), None
    except Missing as error:
        log.warning("not measured with %s: %s", error.name, error.reason)
        return None, error.reason


def _squared_distances(left: list[Tensor], right: list[Tensor]) -> np.ndarray:
    """Per layer [N, F] and [M, F] -> N x M, summed over layers and features, float64."""
    total = np.zeros((len(left[0]), len(right[0])))
    for a, b in zip(left, right, strict=True):
        for part, other in zip(a.split(_CHUNK, dim=1), b.split(_CHUNK, dim=1), strict=True):
            total += (part[:, None] - other[None]).square().sum(dim=2).double().cpu().numpy()
    return total


def _read_features(folder: Path) -> dict[str, Tensor]:
    """The weights "features.N.weight", "features.N.bias" of the folder's file, without prefix."""
    from safetensors import safe_open

    path, prefix = weight_file(folder), "features."
    if path is None:
        raise UserError(
            f"evaluation.lpips: {folder} does not hold one file of weights (.safetensors, .bin or "
            ".pth); give a folder with torchvision's VGG-16 or AlexNet, or null"
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                keys = file.keys()
                found = {key: file.get_tensor(key) for key in keys if key.startswith(prefix)}
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = {key: found[key] for key in found if key.startswith(prefix)}
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(
            f"evaluation.lpips: {path} cannot be read ({type(error).__name__}: {error}); it may be "
            "damaged: fetch it again"
        ) from error
    return {key.removeprefix(prefix): tensor for key, tensor in found.items()}


def _net_of(state: dict[str, Tensor], source: str | Path) -> str:
    """Name the net whose weights these are, by names and shapes."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    for net, (build, *_) in _NETS.items():
        with torch.device("meta"):
            wanted = {key: tensor.shape for key, tensor in build().state_dict().items()}
        if shapes == wanted:
            return net
    raise UserError(
        f"evaluation.lpips: {source} holds neither torchvision's VGG-16 nor its AlexNet (weights "
        '"features.0.weight", ...); give timm/vgg16.tv_in1k or a copy of it, or null'
    )


def _read_heads(net: str) -> list[Tensor]:
    """LPIPS's learned weights of the channels, none below 0: five times [1, C, 1, 1]."""
    from torchmetrics.functional.image import lpips

    path = Path(lpips.__file__).parent / "lpips_models" / f"{net}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"] for layer in range(5)]
