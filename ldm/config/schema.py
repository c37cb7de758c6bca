"""What can be configured: one dataclass per section, the defaults of every key.

`configs/dreambooth.yaml` holds the same keys with the values of the main job; a test compares both.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Sampler = Literal[
    "ddim", "plms", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc"
]


@dataclass
class Model:
    base: str = "data/storybook-sd"  # diffusers folder, hub id, .safetensors or .ckpt file
    revision: str | None = None  # hub only: branch, tag or commit
    variant: str | None = None  # file variant such as fp16
    tokenizer: str | None = None  # of a single file: folder or hub id; None: its own, or CLIP's
    prediction_type: Literal["epsilon", "v_prediction"] | None = None  # None: the base's own
    ema: bool = False  # of a single file: the averaged weights in it
    vae: str | None = None  # another: folder, hub id or file; None: the base's own
    clip_skip: int = 0  # last layers of the text encoder to pass over; A1111 counts one more
    prompt_chunks: int = 1  # windows of 75 tokens that a prompt has
    train_text_encoder: bool = True  # False trains the UNet alone
    gradient_checkpointing: bool = False  # less memory, about a third more time


@dataclass
class Adapter:
    """Few weights beside the base's own, which stay as they are (docs/adapters.md)."""

    kind: Literal["lora", "dora", "rslora", "loha", "lokr", "oft"] = "lora"
    rank: int = 8  # of oft the size of its blocks
    alpha: float | None = None  # None: the rank
    text_encoder_rank: int | None = None  # None: the same
    text_encoder_alpha: float | None = None  # None: as alpha, which is then of its own rank
    dropout: float = 0.0
    conv: bool = False  # also 3x3 convolutions
    targets: list[str] = field(default_factory=list)  # layers and blocks; []: attention everywhere
    timestep_rank: int | None = None  # the UNet's at the noisiest timestep; None: the whole at all
    timestep_rank_power: float = 1.0  # how fast it falls
    frozen: Literal["full", "half", "int8", "nf4"] = "full"  # the base's own weights


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
    weight: float = 1.0  # of its samples in the loss


@dataclass
class MoreSubject:
    """One more subject in the same run; what is empty or None follows from `subject`."""

    pictures: str = ""
    identifier: str = ""
    class_noun: str = ""
    prompt: list[str] = field(default_factory=list)  # []: subject.prompt with the nouns exchanged
    prior_prompt: list[str] = field(default_factory=list)  # []: likewise prior.prompt
    weight: float = 1.0


@dataclass
class Data:
    resolution: int | None = None  # pixels; None: the base's own
    aspect: Literal["square", "buckets"] = "square"  # buckets: each picture in its own form
    enlarge: bool = False  # of buckets: small pictures too get a full-sized one
    crop: Literal["center", "random"] = "center"
    crops: int = 4  # seeded crops per picture; only where crop is random
    mirror: bool = False  # also train on mirrored pictures
    cache: str | None = "data/cache"  # latents on disk; None: in memory only


@dataclass
class Prior:
    prompt: list[str] = field(
        default_factory=lambda: [
            "a drawing of a ${subject.class_noun}",
            "a drawing of a ${subject.class_noun} wearing a top hat",
            "a drawing of a ${subject.class_noun} wearing a crown",
            "a drawing of a ${subject.class_noun} wearing a scarf",
            "a drawing of a ${subject.class_noun} wearing sunglasses",
            "a drawing of a ${subject.class_noun} holding a balloon",
        ]
    )  # the bare one first; each holds the class noun, never the identifier
    images: Literal["cached", "live", "subject"] = "cached"
    target: Literal["data", "base"] = "base"
    count: int = 64  # class images of each prompt, made where missing; of live ones those in use
    uses: int = 4  # how often each live class image is used
    batch: int = 4  # class samples per optimizer step, over all processes
    weight: float = 10.0  # of the prior loss
    weight_end: float | None = None  # at the last step; None: the weight stays
    caption_dropout: float | None = 0.2  # of its samples; None: as objective.caption_dropout
    folder: str | None = None  # your own class pictures, instead of made ones
    root: str = "data/prior"  # where made ones are kept for all runs
    seed: int = 0
    scale: float = 2.5
    steps: int = 12
    sampler: Sampler = "dpmpp_2m"
    sampling_batch: int = 16  # pictures made at once


@dataclass
class Training:
    steps: int = 600  # optimizer steps
    batch: int = 4  # subject samples per optimizer step, over all processes
    accumulate: int = 1  # forward passes a step is split into
    learning_rate: float = 2e-4
    text_encoder_learning_rate: float | None = 4e-4  # None: the same
    weight_decay: float = 0.01
    betas: list[float] | None = None  # None: the optimizer's own
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 0  # steps in which the learning rate rises
    gradient_clip: float | None = 1.0  # largest gradient norm; None: unbounded
    precision: Literal["auto", "fp32", "bf16-mixed", "16-mixed"] = "auto"
    weights: Literal["fp32", "bf16"] = "fp32"  # what is trained is kept in; bf16: half the memory
    fused_backward: bool = False  # each weight is stepped once its gradient is there
    compile: Literal["auto", "always", "never"] = "auto"  # the UNet's blocks; auto: where it pays
    optimizer: str = "adamw"  # see checks.OPTIMIZERS, or module:Class
    optimizer_arguments: dict[str, Any] = field(default_factory=dict)
    text_encoder_stop: float = 1.0  # share of the steps after which the text encoder is frozen
    pivotal: float = 0.15  # share of the steps, at the start, that train the identifier's row alone
    pivotal_learning_rate: float = 1e-2
    save_every: int = 100  # steps between resume states


@dataclass
class Objective:
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    huber_c: float = 0.1
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    weighting: Literal["uniform", "min_snr", "soft_min_snr", "debiased", "p2"] = "uniform"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    noise_offset: float = 0.0
    pyramid_noise: float = 0.0  # discount per level; 0: none
    input_perturbation: float = 0.0
    zero_terminal_snr: bool = False
    timesteps: Literal["uniform", "logit_normal", "cubic"] = "uniform"
    timestep_min: int = 0
    timestep_max: int | None = None  # not included; None: the base's number of timesteps
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mask_outside: float | None = None  # weight of what a mask leaves out; None: no masks
    caption_dropout: float = 0.0


@dataclass
class Ema:
    schedule: Literal["none", "constant", "power"] = "none"
    decay: float = 0.999  # with a power schedule the highest
    power: float = 0.75


@dataclass
class Snapshots:
    every: int = 300  # steps; the last step is always kept
    keep: int | None = None  # the newest N; None: all


@dataclass
class Sampling:
    sampler: Sampler = "dpmpp_2m"
    steps: int = 25
    scale: float = 5.0  # guidance
    rescale: float = 0.0  # guidance rescale, arXiv 2305.08891 section 3.4
    guidance_interval: list[float] | None = None  # noise levels at which it acts; None: at all
    negative: str = ""
    batch: int = 8


@dataclass
class Samples:
    every: int = 300  # steps between grids; 0: none
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
    vae: str | None = None  # an AutoencoderTiny that decodes grids: folder or hub id


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
    artifact_gib: float = 1.0  # the largest export that W&B gets as an artifact; 0: none


@dataclass
class Evaluation:
    oracle: str | None = "ldm.storybook.oracle:load_oracle"  # module:name
    prompts: list[str] = field(default_factory=list)  # naming the subject; []: see configs
    unrelated: list[str] = field(default_factory=list)  # of other things; []: see configs
    images: int = 4  # per prompt that names the subject
    class_images: int = 512  # of the class prompt
    unrelated_images: int = 4  # per unrelated prompt
    seed: int = 1000  # not a seed of the training grids
    steps: int | None = 12  # of the sampler; None: sampling.steps
    root: str = "data/evaluation"  # where pictures of untouched bases are kept for all runs
    dino: str | None = None  # hub id or folder; None: does without
    clip: str | None = None
    lpips: str | None = None
    every: int | None = None  # steps between measurements while training; None: at the end only
    final: bool = True  # measure every snapshot at the end
    patience: int | None = None  # measurements without a rise before training ends early
    export: bool = True  # write the chosen snapshot as a diffusers folder
    margins: dict[str, float] = field(default_factory=dict)  # of what a snapshot may lose


@dataclass
class Config:
    name: str | None = None  # ends the run folder's name; None: the class noun
    logs: str = "logs"  # where run folders are made
    seed: int = 0
    model: Model = field(default_factory=Model)
    adapter: Adapter | None = None  # None: all weights are trained
    subject: Subject = field(default_factory=Subject)
    subjects: list[MoreSubject] = field(default_factory=list)  # more than one in a run
    data: Data = field(default_factory=Data)
    prior: Prior | None = field(default_factory=Prior)  # None: no prior preservation
    training: Training = field(default_factory=Training)
    objective: Objective = field(default_factory=Objective)
    ema: Ema = field(default_factory=Ema)
    snapshots: Snapshots = field(default_factory=Snapshots)
    sampling: Sampling = field(default_factory=Sampling)
    samples: Samples = field(default_factory=Samples)
    trainer: Trainer = field(default_factory=Trainer)
    logger: Logger = field(default_factory=Logger)
    evaluation: Evaluation | None = field(default_factory=Evaluation)  # None: no numbers
    profile: bool = False  # write where a step's time goes
