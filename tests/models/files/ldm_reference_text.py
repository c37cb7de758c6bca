"""The text encoders of the original Stable Diffusion and the whole of its models: see there."""

import torch
from torch import Tensor, nn

from tests.models.files.ldm_reference import AutoencoderKL, Sizes, Text, UNetModel


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


class ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + causal(x.shape[1])
        return self.out_proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


class ClipLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = ClipAttention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class ClipTransformer(nn.Module):
    """CLIP's text model under the names that transformers gave it when the files were made."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(text.words, text.width),
                "position_embedding": nn.Embedding(text.length, text.width),
            }
        )
        layers = nn.ModuleList(ClipLayer(text.width, text.heads) for _ in range(text.layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(text.width)

    def forward(self, ids: Tensor, layer: int | None = None) -> Tensor:
        """The normalised last states; with `layer` what that layer reads, as it is."""
        x = self.embeddings["token_embedding"](ids)
        x = x + self.embeddings["position_embedding"].weight
        layers = [*self.encoder["layers"]]  # type: ignore[misc]
        for one in layers[:layer]:
            x = one(x)
        return self.final_layer_norm(x) if layer is None else x


class OpenClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        mask = causal(x.shape[0])
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClip(nn.Module):
    def __init__(self, text: Text) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(text.words, text.width)
        self.positional_embedding = nn.Parameter(torch.randn(text.length, text.width))
        blocks = nn.ModuleList(OpenClipBlock(text.width, text.heads) for _ in range(text.layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.blocks = [*blocks]
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.randn(text.width, text.projection))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block reads, and what it writes, [N, L, D] each."""
        x = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        before = x
        for block in self.blocks:
            before = x
            x = block(x)
        return before.transpose(0, 1), x.transpose(0, 1)

    def penultimate(self, ids: Tensor) -> Tensor:
        """FrozenOpenCLIPEmbedder, layer "penultimate"."""
        return self.ln_final(self.states(ids)[0])

    def pooled(self, ids: Tensor, end: int) -> Tensor:
        """The state at the end token, projected."""
        last = self.ln_final(self.states(ids)[1])
        place = (ids == end).int().argmax(-1)
        return last[torch.arange(len(ids)), place] @ self.text_projection


def holder(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


class LatentDiffusion(nn.Module):
    """A whole checkpoint's modules under their names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = holder(diffusion_model=UNetModel(sizes))
        self.first_stage_model = AutoencoderKL(sizes)
        self.texts = [
            OpenClip(text) if text.open_clip else ClipTransformer(text) for text in sizes.text
        ]
        embedders = [
            holder(model=made)
            if isinstance(made, OpenClip)
            else holder(transformer=holder(text_model=made))
            for made in self.texts
        ]
        if len(embedders) == 1:
            self.cond_stage_model = embedders[0]
        else:
            self.conditioner = holder(embedders=nn.ModuleList(embedders))

    @property
    def unet(self) -> nn.Module:
        return self.model["diffusion_model"]


def never_in_diffusers(sizes: Sizes) -> set[str]:
    """The tensors that a file made from diffusers' networks cannot have."""
    if len(sizes.text) == 2:
        return {"conditioner.embedders.1.model.logit_scale"}
    (text,) = sizes.text
    if not text.open_clip:
        return set()
    prefix = "cond_stage_model.model."
    with torch.device("meta"):
        block = OpenClipBlock(text.width, text.heads).state_dict()
    unused = {f"{prefix}transformer.resblocks.{text.layers - 1}.{key}" for key in block}
    return {f"{prefix}logit_scale", f"{prefix}text_projection", *unused}
