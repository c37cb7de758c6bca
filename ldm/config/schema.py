"""What can be configured: one dataclass per section, the defaults of every key.

`configs/dreambooth.yaml` holds the same keys with the values of the main job; a test compares both.
"""

from dataclasses import dataclass, field
from typing import Literal

Sampler = Literal[
    "ddim", "plms", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc"
]


@dataclass
class Model:
    base: str = "data/storybook-sd"  # diffusers folder or hub id
    revision: str | None = None  # hub only: branch, tag or commit
    variant: str | None = None  # file variant such as fp16
    train_text_encoder: bool = True  # False trains the UNet alone
    gradient_checkpointing: bool = False  # less memory, about a third more time


@dataclass
class Subject:
    pictures: str = "data/subjects/robot_volt"  # folder with 3-5 pictures
    identifier: str = "sks"  # the rare word that will name the subject
    class_noun: str = "robot"  # what the subject is one of
    prompt: list[str] = field(
        default_factory=lambda: ["a drawing of [V] ${subject.class_noun}"]
    )  # templates
    captions: bool = True  # x.txt beside x.png takes the place of the prompt
    background: str = "white"  # laid under transparent pictures


@dataclass
class Data:
    resolution: int | None = None  # pixels; None: the base's own
    crop: Literal["center", "random"] = "center"
    crops: int = 4  # seeded crops per picture; only where crop is random
    mirror: bool = False  # also train on mirrored pictures
    cache: str | None = "data/cache"  # latents on disk; None: in memory only


@dataclass
class Prior:
    prompt: str = (
        "a drawing of a ${subject.class_noun}"  # holds the class noun, never the identifier
    )
    count: int = 96  # class images to have, made where missing
    batch: int = 4  # class samples per optimizer step, over all processes
    weight: float = 1.0  # of the prior loss
    folder: str | None = None  # your own class pictures, instead of made ones
    root: str = "data/prior"  # where made ones are kept for all runs
    seed: int = 0
    scale: float = 2.5
    steps: int = 25
    sampler: Sampler = "dpmpp_2m"
    sampling_batch: int = 16  # pictures made at once


@dataclass
class Training:
    steps: int = 300  # optimizer steps
    batch: int = 4  # subject samples per optimizer step, over all processes
    accumulate: int = 1  # forward passes a step is split into
    learning_rate: float = 1e-4
    text_encoder_learning_rate: float | None = None  # None: the same
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 0  # steps in which the learning rate rises
    gradient_clip: float | None = 1.0  # largest gradient norm; None: unbounded
    precision: Literal["fp32", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    min_snr_gamma: float | None = None  # arXiv 2303.09556; None: every timestep weighs the same
    save_every: int = 100  # steps between resume states


@dataclass
class Snapshots:
    every: int = 100  # steps; the last step is always kept
    keep: int | None = None  # the newest N; None: all


@dataclass
class Sampling:
    sampler: Sampler = "dpmpp_2m"
    steps: int = 25
    scale: float = 5.0  # guidance
    rescale: float = 0.0  # guidance rescale, arXiv 2305.08891 section 3.4
    negative: str = ""
    batch: int = 8


@dataclass
class Samples:
    every: int = 100  # steps between grids; 0: none
    prompts: list[str] = field(
        default_factory=lambda: [
            "a drawing of [V] ${subject.class_noun}",
            "a drawing of [V] ${subject.class_noun} in the snow",
            "a drawing of [V] ${subject.class_noun} under water",
            "a drawing of [V] ${subject.class_noun} wearing a top hat in the kitchen",
            "a drawing of [V] ${subject.class_noun} holding a balloon in the desert",
            "a drawing of a ${subject.class_noun}",
        ]
    )
    count: int = 4  # pictures per prompt
    seed: int = 0  # picture i has seed + i in every grid


@dataclass
class Trainer:
    accelerator: str = "auto"
    devices: str = "auto"  # how many, or a list such as 0,2
    nodes: int = 1
    strategy: str = "auto"
    deterministic: bool = False  # CUDA: bit-for-bit resume, slower


@dataclass
class Logger:
    wandb: bool = False  # TensorBoard and metrics.csv are always written
    project: str = "dreambooth"
    offline: bool = False  # W&B without a network; `wandb sync` later


@dataclass
class Evaluation:
    oracle: str | None = "ldm.storybook.oracle:load_oracle"  # module:name
    images: int = 2  # per subject prompt; class prompts get 8 times as many
    seed: int = 1000  # not a seed of the training grids


@dataclass
class Config:
    name: str | None = None  # ends the run folder's name; None: the class noun
    logs: str = "logs"  # where run folders are made
    seed: int = 0
    model: Model = field(default_factory=Model)
    subject: Subject = field(default_factory=Subject)
    data: Data = field(default_factory=Data)
    prior: Prior | None = field(default_factory=Prior)  # None: no prior preservation
    training: Training = field(default_factory=Training)
    snapshots: Snapshots = field(default_factory=Snapshots)
    sampling: Sampling = field(default_factory=Sampling)
    samples: Samples = field(default_factory=Samples)
    trainer: Trainer = field(default_factory=Trainer)
    logger: Logger = field(default_factory=Logger)
    evaluation: Evaluation | None = field(default_factory=Evaluation)  # None: no numbers
