"""What the networks of Stable Diffusion 1.x, 2.x and XL are, where a file has weights alone.

The values are those of the models' own configuration files on the hub: runwayml (now
stable-diffusion-v1-5)/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and
stabilityai/stable-diffusion-xl-base-1.0. What the libraries' classes have by default is left out.
"""

from dataclasses import dataclass
from typing import Any

from ldm.models.files.keys import Kind

NAMES: dict[Kind, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}


@dataclass(frozen=True)
class Architecture:
    """Arguments of the classes of diffusers and transformers, by part."""

    configs: dict[str, dict[str, Any]]
    native: dict[str, int]  # prediction type -> side of the pictures it was trained for, in pixels
    # What files of this kind predict unless they say otherwise; None: they come in both sorts.
    usual_prediction: str | None


_ATTENDING_DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
_ATTENDING_UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_UNET_1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": _ATTENDING_DOWN,
    "up_block_types": _ATTENDING_UP,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' name for the number of heads
}
_UNET_2 = {
    **_UNET_1,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],  # heads of 64 channels
    "use_linear_projection": True,
    "upcast_attention": True,  # 2.1 overflows in half precision without
}
_UNET_XL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # 1280 of the pooled text + 6 x 256
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
_OPEN_CLIP_H = {
    **_CLIP_L,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: the states of the last but one are read
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
_OPEN_CLIP_G = {
    **_OPEN_CLIP_H,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
ARCHITECTURES: dict[Kind, Architecture] = {
    "sd1": Architecture(
        {"unet": _UNET_1, "vae": _VAE, "text_encoder": _CLIP_L},
        native={"epsilon": 512, "v_prediction": 512},
        usual_prediction="epsilon",
    ),
    "sd2": Architecture(
        {"unet": _UNET_2, "vae": _VAE, "text_encoder": _OPEN_CLIP_H},
        native={"epsilon": 512, "v_prediction": 768},
        usual_prediction=None,
    ),
    "sdxl": Architecture(
        {
            "unet": _UNET_XL,
            "vae": {**_VAE, "scaling_factor": 0.13025},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _OPEN_CLIP_G,
        },
        native={"epsilon": 1024, "v_prediction": 1024},
        usual_prediction="epsilon",
    ),
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def known_configs(kind: Kind, prediction_type: str) -> dict[str, dict[str, Any]]:
    """Configuration of each network of a kind, with the sides of latents and pictures in it."""
    architecture = ARCHITECTURES[kind]
    pixels = architecture.native[prediction_type]
    configs = {part: dict(config) for part, config in architecture.configs.items()}
    configs["vae"]["sample_size"] = pixels
    configs["unet"]["sample_size"] = pixels // 8
    return configs
