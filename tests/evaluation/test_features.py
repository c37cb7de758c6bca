"""DINO's and CLIP's features against transformers' own code on pictures prepared by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.evaluation import features, hub
from ldm.evaluation.features import ClipFeatures, DinoFeatures, load_extractors, preprocess
from tests.conftest import TINY_WORDS, edit_json, tiny_tokenizer

SIZES = ((224, 224), (512, 512), (256, 300), (700, 480), (64, 64), (97, 130))
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
}
VISION = SMALL | {"image_size": 224, "patch_size": 32}


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ViTModel(ViTConfig(**VISION), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer(TINY_WORDS)
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    text = SMALL | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with noise on top, so that overshoot and aliasing both show."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR))
    noisy = smooth + generator.normal(0, 25, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def by_hand(image: Image.Image, short: int, mean: list[float], deviation: list[float]) -> Tensor:
    """torchvision's Resize (bicubic), CenterCrop(224), ToTensor, Normalize, written out."""
    width, height = image.size
    if width <= height:
        image = image.resize((short, int(short * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(short * width / height), short), Image.Resampling.BICUBIC)
    width, height = image.size
    left, top = int(round((width - 224) / 2.0)), int(round((height - 224) / 2.0))
    pixels = np.asarray(image, dtype=np.float64)[top : top + 224, left : left + 224] / 255
    pixels = (pixels - np.array(mean)) / np.array(deviation)
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


DINO = (256, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = (224, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_the_papers(size: tuple[int, int]) -> None:
    image = photograph(size)
    for pins, normal in ((DINO, features.IMAGENET), (CLIP, features.OPENAI)):
        ours = preprocess(to_tensor(image), pins[0], normal)
        assert ours.shape == (3, 224, 224)
        torch.testing.assert_close(ours, by_hand(image, *pins), rtol=0, atol=1e-6)


def test_preprocessing_is_that_of_transformers() -> None:
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    crop = {"height": 224, "width": 224}
    dino = ViTImageProcessorPil(
        resample=Image.Resampling.BICUBIC,
        size={"shortest_edge": 256},
        do_center_crop=True,
        crop_size=crop,
        image_mean=DINO[1],
        image_std=DINO[2],
    )
    processors = ((dino, 256, features.IMAGENET), (CLIPImageProcessorPil(), 224, features.OPENAI))
    for size in ((224, 224), (512, 512), (700, 480)):  # the rest is cropped half a pixel apart
        image = photograph(size)
        for processor, short, normal in processors:
            theirs = processor(images=image, return_tensors="pt").pixel_values[0]
            ours = preprocess(to_tensor(image), short, normal)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_dino_is_the_normalised_class_token(dino_folder: Path) -> None:
    from transformers import ViTModel

    images = [photograph((100, 80), seed) for seed in range(5)]
    found = DinoFeatures(dino_folder, batch=2)(torch.stack([to_tensor(i) for i in images]))
    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = model(torch.stack([by_hand(image, *DINO) for image in images])).last_hidden_state
    expected = states[:, 0] / states[:, 0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (5, 32)
    assert (expected @ expected.T).min() < 0.999, "these pictures are unlike one another"


def test_clip_is_the_normalised_projection(clip_folder: Path) -> None:
    from transformers import CLIPModel

    images = [photograph((100, 80), seed) for seed in range(3)]
    prompts = ["a photo of a dog", "a drawing of a robot on the beach", "a dog"]
    clip = ClipFeatures(clip_folder, batch=2)
    shown, said = clip([to_tensor(image) for image in images]), clip.text(prompts)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        for i, prompt in enumerate(prompts):  # one at a time: no padding
            tokens = torch.tensor([tiny_tokenizer(TINY_WORDS)(prompt).input_ids])
            pixels = by_hand(images[i], *CLIP)[None]
            theirs = model(input_ids=tokens, pixel_values=pixels)  # unit rows already
            torch.testing.assert_close(shown[i], theirs.image_embeds[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(said[i], theirs.text_embeds[0], rtol=0, atol=1e-5)
    assert shown.shape == said.shape == (3, 16) and said.dtype == torch.float32


def test_a_long_prompt_is_cut(clip_folder: Path) -> None:
    rows = ClipFeatures(clip_folder).text(["a dog", "a dog on the beach " * 50])
    assert torch.isfinite(rows).all() and torch.allclose(rows.norm(dim=1), torch.ones(2))


def test_pictures_of_several_sizes_and_of_none(dino_folder: Path) -> None:
    dino = DinoFeatures(dino_folder)
    images = [to_tensor(photograph(size)) for size in SIZES]
    together = dino(images)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(SIZES)))
    torch.testing.assert_close(together[3:4], dino(images[3][None]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="features of nothing"):
        dino(torch.zeros(0, 3, 8, 8))


def test_half_precision_is_close(dino_folder: Path, clip_folder: Path) -> None:
    shown = torch.stack([to_tensor(photograph((64, 64), seed)) for seed in range(3)])
    extractors, _ = load_extractors(dino_folder, clip_folder, dtype=torch.bfloat16)
    exact, _ = load_extractors(dino_folder, clip_folder)
    for half, full in zip(extractors, exact, strict=True):
        rows = half(shown)
        assert rows.dtype == torch.float32
        assert 0.999 < (rows * full(shown)).sum(dim=1).min() < 1 - 1e-9


def test_a_dino_saved_with_its_useless_pooler_is_the_same(
    dino_folder: Path, tmp_path: Path
) -> None:
    from transformers import ViTModel

    ViTModel.from_pretrained(dino_folder).save_pretrained(tmp_path)
    shown = to_tensor(photograph((64, 64)))[None]
    assert torch.equal(DinoFeatures(tmp_path)(shown), DinoFeatures(dino_folder)(shown))


def test_true_sizes_are_accepted(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)  # ViT-S/16
    ViTModel(small, add_pooling_layer=False).save_pretrained(tmp_path)
    dino = DinoFeatures(tmp_path)
    assert sum(p.numel() for p in dino.model.parameters()) == 21_665_664  # of facebook/dino-vits16
    assert dino(torch.zeros(1, 3, 256, 256)).shape == (1, 384)


def test_what_cannot_be_had_is_reported_and_the_rest_used(
    dino_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractors, missing = load_extractors(dino_folder, tmp_path / "nowhere")
    assert [(e.space, e.name) for e in extractors] == [("dino", str(dino_folder))]
    assert missing.keys() == {"clip"} and "no such folder" in missing["clip"]
    assert "clip" in caplog.text
    assert load_extractors(None, None) == ([], {})


def test_without_a_network_the_hub_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    extractors, missing = load_extractors("facebook/dino-vits16", "openai/clip-vit-base-patch32")
    assert extractors == []
    assert missing.keys() == {"dino", "clip"}
    assert "facebook/dino-vits16" in missing["dino"] and "evaluation.dino" in missing["dino"]


class FakeHub:
    """A hub with one repository, which is a folder; counts what is asked over the network."""

    def __init__(self, folder: Path, cached: bool) -> None:
        self.folder, self.cached, self.asked = folder, cached, 0
        self.patterns: list[str] = []

    def model_info(self, name: str, timeout: float) -> Any:
        assert 0 < timeout <= 30
        self.asked += 1
        names = [path.name for path in self.folder.iterdir()]
        siblings = [type("Sibling", (), {"rfilename": name})() for name in names]
        return type("Info", (), {"siblings": siblings})()

    def snapshot_download(
        self, name: str, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only and not self.cached:
            raise LocalEntryNotFoundError("not cached")
        self.patterns = allow_patterns or []
        return str(self.folder)


@pytest.mark.parametrize("cached", [False, True])
def test_the_hub_is_asked_once(
    cached: bool, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    fake = FakeHub(clip_folder, cached)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    clip = ClipFeatures("someone/clip")
    assert clip.name == "someone/clip"
    assert fake.asked == (0 if cached else 1)
    assert cached or {"model.safetensors", "config.json", "vocab.json"} < set(fake.patterns)


def test_a_half_fetched_model_is_fetched_again(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    partial = tmp_path / "partial"
    partial.mkdir()
    shutil.copy(clip_folder / "config.json", partial)
    fake = FakeHub(partial, cached=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    with pytest.raises(hub.Missing, match="neither model.safetensors nor"):
        ClipFeatures("someone/clip")
    assert fake.asked == 1


def another_kind(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="dinov2")


def another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.get("vision_config", config)["image_size"] = 336
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1", "utf-8")


def lost_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state[next(k for k in state if k == "visual_projection.weight" or k == "layernorm.weight")]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").unlink(missing_ok=True)


def larger_tokenizer(folder: Path) -> None:
    tiny_tokenizer([*TINY_WORDS, "elephant", "mountain"]).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spaces", "spoil", "said"),
    [
        ("dino clip", another_kind, "'dinov2'"),
        ("dino clip", another_size, "336"),
        ("dino clip", no_config, "config.json"),
        ("dino clip", broken_config, "config.json"),
        ("dino clip", lost_weight, "do not fit"),
        ("clip", no_tokenizer, "lacks the tokenizer"),
        ("clip", larger_tokenizer, "of different models"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    spaces: str,
    spoil: Callable[[Path], None],
    said: str,
    dino_folder: Path,
    clip_folder: Path,
    tmp_path: Path,
) -> None:
    for space in spaces.split():
        folder = shutil.copytree(
            {"dino": dino_folder, "clip": clip_folder}[space], tmp_path / space
        )
        spoil(folder)
        with pytest.raises(UserError, match=rf"evaluation\.{space}.*{space}.*{said}"):
            load_extractors(
                folder if space == "dino" else None, folder if space == "clip" else None
            )


def test_a_vision_tower_alone_is_no_clip(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'clip_vision_model', and 'clip' is needed"):
        ClipFeatures(tmp_path)
