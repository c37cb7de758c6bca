"""Pictures and prompts as unit vectors: DINO and CLIP, one contract, preprocessing pinned here."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ldm.data.images import to_picture, to_tensor
from ldm.errors import UserError
from ldm.evaluation.hub import Missing, find
from ldm.models.weights import load_weights

log = logging.getLogger(__name__)

CROP = 224  # pixels a side that both networks read
DINO_SHORT_SIDE = 256
CLIP_SHORT_SIDE = 224
# https://github.com/facebookresearch/dino/blob/main/eval_knn.py
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# https://github.com/openai/CLIP/blob/main/clip/clip.py
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")

Pictures = Tensor | Sequence[Tensor]  # NCHW, or N times CHW of any sizes; RGB in [-1, 1]


class Extractor(Protocol):
    """Pictures -> float32 [N, C] on the CPU, unit rows.

    space: "dino" or "clip", as metrics are named. name: which network it is.
    """

    space: str
    name: str

    def __call__(self, pictures: Pictures) -> Tensor: ...


class DinoFeatures:
    """The class token of DINO's ViT-S/16 (arXiv 2104.14294), as in DreamBooth's "DINO"."""

    space = "dino"

    def __init__(
        self,
        source: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 32,
    ) -> None:
        """Load from a hub id or a folder that transformers saved. Missing, UserError: see `find`;
        UserError also: the folder holds no ViT for 224 pixels."""
        from transformers import ViTModel

        folder = find("dino", source, ["config.json"], _has_config)
        _check_config("dino", folder, "vit")
        self.name = str(source)
        self.batch = batch
        # The class token needs no pooler; transformers saves a random one all the same.
        options: dict[str, Any] = {"add_pooling_layer": False, "harmless": "pooler."}
        self.model = _load("dino", ViTModel, folder, device, dtype=dtype, **options)

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Tensor:
        rows = []
        for pixels in _batches(pictures, self.batch, DINO_SHORT_SIDE, IMAGENET):
            states = self.model(pixels.to(self.model.device, self.model.dtype)).last_hidden_state
            rows.append(states[:, 0])  # [B, 1 + patches, C] -> [B, C]
        return _unit(rows)


class ClipFeatures:
    """CLIP ViT-B/32's projected embeddings (arXiv 2103.00020): "CLIP-I" and, with text, "CLIP-T".

    A picture's and a prompt's cosine is CLIP-T as it is, without the factor 2.5 of CLIPScore.
    """

    space = "clip"

    def __init__(
        self,
        source: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 32,
    ) -> None:
        """Load from a hub id or a folder that transformers saved. Missing, UserError: see `find`;
        UserError also: the folder holds no CLIP of both towers for 224 pixels, or no tokenizer."""
        from transformers import CLIPModel

        folder = find(
            "clip",
            source,
            ["config.json", *_TOKENIZER],
            lambda folder: _has_config(folder) and _has_tokenizer(folder),
        )
        _check_config("clip", folder, "clip")
        self.name = str(source)
        self.batch = batch
        self.model = _load("clip", CLIPModel, folder, device, dtype=dtype)
        self.tokenizer = _load_tokenizer(folder, self.model.config.text_config)

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Tensor:
        rows = []
        for pixels in _batches(pictures, self.batch, CLIP_SHORT_SIDE, OPENAI):
            found = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype))
            rows.append(found.pooler_output)  # projected: [B, C]
        return _unit(rows)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> float32 [N, C] on the CPU, unit rows; what is too long for CLIP is cut."""
        rows = []
        for start in range(0, len(prompts), self.batch):
            tokens = self.tokenizer(
                list(prompts[start : start + self.batch]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            rows.append(self.model.get_text_features(**tokens).pooler_output)
        return _unit(rows)


def load_extractors(
    dino: str | Path | None,
    clip: str | Path | None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 32,
) -> tuple[list[Extractor], dict[str, str]]:
    """Load what can be had: (extractors, space -> reason why it is missing).

    dino, clip: hub id, folder, or None for neither extractor nor reason. batch: pictures at a
    time. UserError: a folder is there and holds something else.
    """
    extractors: list[Extractor] = []
    missing: dict[str, str] = {}
    for kind, source in ((DinoFeatures, dino), (ClipFeatures, clip)):
        if source is None:
            continue
        try:
            extractors.append(kind(source, device, dtype, batch))
        except Missing as error:
            log.warning("not measured with %s: %s", error.name, error.reason)
            missing[error.name] = error.reason
    return extractors, missing


def preprocess(
    picture: Tensor, short_side: int, normal: tuple[tuple[float, ...], tuple[float, ...]]
) -> Tensor:
    """[3, H, W] in [-1, 1] -> [3, 224, 224]: short side resized, centre cropped, normalised.

    normal: mean and deviation per channel, of pixels in [0, 1]. Resized by Pillow (bicubic, with
    antialiasing) in 8 bits, as in the networks' own code: torch's antialiased bicubic does not
    clip between its two passes (up to 22/255 off on noise), and its bits depend on the device.
    Pictures read from files have 8 bits, so nothing is lost.
    """
    image = to_picture(picture)
    width, height = image.size
    short = min(width, height)
    width, height = (short_side * side // short for side in (width, height))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - CROP) / 2) for side in (width, height))  # as torchvision rounds
    pixels = to_tensor(image.crop((left, top, left + CROP, top + CROP)))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in normal)
    return ((pixels + 1) / 2 - mean) / deviation


def _batches(pictures: Pictures, size: int, short_side: int, normal: Any) -> Iterator[Tensor]:
    for start in range(0, len(pictures), size):
        chunk = pictures[start : start + size]
        yield torch.stack([preprocess(picture, short_side, normal) for picture in chunk])


def _unit(rows: list[Tensor]) -> Tensor:
    if not rows:
        raise ValueError("features of nothing: no pictures, no prompts")
    return functional.normalize(torch.cat(rows).float().cpu(), dim=1)


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer; without its files CLIPTokenizer opens with two tokens."""
    single = (folder / "tokenizer.json").is_file()
    return single or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))


def _check_config(name: str, folder: Path, kind: str) -> None:
    """UserError unless config.json is of model type `kind` and its pictures are CROP wide."""
    try:
        config = dict(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"evaluation.{name}: {folder} has no readable config.json, as transformers saves it "
            f"({type(error).__name__}: {error})"
        ) from error
    if config.get("model_type") != kind:
        raise UserError(
            f"evaluation.{name}: {folder} holds a model of type {config.get('model_type')!r}, and "
            f"{kind!r} is needed; give {'DINO ViT-S/16' if kind == 'vit' else 'CLIP ViT-B/32'}, "
            "or null"
        )
    size = (config.get("vision_config") or config).get("image_size", CROP)
    if size != CROP:
        raise UserError(
            f"evaluation.{name}: {folder} reads pictures of {size} pixels a side, and scores are "
            f"only comparable at {CROP}; give another model, or null"
        )


def _load(name: str, kind: Any, folder: Path, device: str | torch.device, **options: Any) -> Any:
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    model = load_weights(kind, folder, what=f"evaluation.{name}:", **options)
    return model.requires_grad_(False).to(device)


def _load_tokenizer(folder: Path, config: Any) -> Any:
    """CLIP's own tokenizer of this folder; `config`: the text tower's."""
    from transformers import CLIPTokenizer

    if not _has_tokenizer(folder):
        raise UserError(
            f"evaluation.clip: {folder} lacks the tokenizer (tokenizer.json, or vocab.json and "
            "merges.txt), so that prompts cannot be compared with pictures; copy it there"
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise whatever their readers do
        raise UserError(f"evaluation.clip: tokenizer of {folder}: {error}") from error
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"evaluation.clip: the tokenizer of {folder} has {len(tokenizer)} tokens, the model "
            f"{config.vocab_size}: they are of different models"
        )
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer
