"""Every number of the pretraining recipe; configs/pretrain/storybook.yaml is the shipped one."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm.storybook.pretraining.loop import LoopSettings


@dataclass
class PoolSettings:
    """How many pictures are drawn for each stage."""

    vae: int = 16000
    diffusion: int = 64000
    oracle_families: int = 6000


@dataclass
class VaeSettings:
    channels: list[int] = field(default_factory=lambda: [32, 48, 64])
    latent_channels: int = 4
    batch: int = 32  # crops of 32 x 32 pixels
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(4800, 2e-3, 100, 0.4, ema=0.998)
    )
    decoder_loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(2500, 1e-3, 100, 0.6, ema=0.998)
    )


@dataclass
class DiffusionSettings:
    channels: list[int] = field(default_factory=lambda: [64, 128, 192])
    text_width: int = 128
    text_layers: int = 3
    text_length: int = 32  # tokens
    vocabulary: int = 800  # at most
    batch: int = 64
    min_snr_gamma: float = 5.0
    half_trained_at: list[int] = field(default_factory=lambda: [150, 300, 450])  # for the oracle
    half_trained_count: int = 256  # pictures at each of these steps
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(7000, 1e-3))


@dataclass
class OracleSettings:
    channels: list[int] = field(default_factory=lambda: [32, 64, 96, 128])
    features: int = 256
    embedding: int = 64
    families: int = 4  # of eight things with four pictures each, a step
    settling: int = 4000  # pictures on which the "none" answer is settled
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(3100, 2e-3))


@dataclass
class RecognitionSettings:
    """How the oracle is taught to recognise things in pictures as a model draws them."""

    start_from: str | None = None  # folder of an oracle; None: that of the stage before
    families: int = 1400  # drawn for it
    softened_families: int = 700  # of these, also as the base's VAE and UNet make them
    batch: int = 16  # families a step
    loop: LoopSettings = field(default_factory=lambda: LoopSettings(1500, 1e-3))


@dataclass
class IdentitySettings:
    """How the threshold of identity is set."""

    subjects: int = 480
    # Kinds of pictures of which at most 1 % may be taken for the subject; the rates of the other
    # kinds are reported.
    rivals: list[str] = field(default_factory=lambda: ["world objects", "other subjects"])


@dataclass
class ScoreSettings:
    """On how many fresh draws the base and the oracle are measured."""

    prompts: int = 512
    renders: int = 4096
    pairs: int = 450  # of designs of one class, to be told apart
    subjects: int = 320  # for the rates of identity
    class_images: int = 40  # of each class, drawn by the base, for the same


@dataclass
class PretrainSettings:
    base: str = "data/storybook-sd"  # where the base is put
    oracle_folder: str = "data/storybook-oracle"  # where the oracle is put
    work: str = "logs/pretrain"  # states of unfinished stages, latents
    seed: int = 0
    start_from: str | None = None  # a base of this shape to go on from; the oracle stays
    pool: PoolSettings = field(default_factory=PoolSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    oracle: OracleSettings = field(default_factory=OracleSettings)
    recognition: RecognitionSettings = field(default_factory=RecognitionSettings)
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
