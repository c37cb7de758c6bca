"""What can be set about training, what excludes what, and few rows that hold every pair."""

import itertools
from collections.abc import Mapping

KINDS = ("lora", "dora", "lokr", "oft")
# The first value of each is that of an option that is off.
OPTIONS: dict[str, tuple[object, ...]] = {
    "base": ("eps", "v"),  # what it predicts
    "model__train_text_encoder": ("true", "false"),
    "model__prediction_type": ("null", "v_prediction"),
    "model__vae": ("null", "other"),
    "model__clip_skip": (0, 1),
    "model__prompt_chunks": (1, 2),
    "model__gradient_checkpointing": ("false", "true"),
    "adapter": ("null", *KINDS),
    "adapter__dropout": (0.0, 0.2),
    "adapter__conv": ("false", "true"),
    "adapter__frozen": ("full", "half", "nf4"),
    "adapter__text_encoder_rank": ("null", 2),
    "adapter__timestep_rank": ("null", 2),
    "training__precision": ("fp32", "bf16-mixed", "16-mixed"),
    "training__weights": ("fp32", "bf16"),
    "training__fused_backward": ("false", "true"),
    "training__accumulate": (1, 2),
    "training__schedule": ("constant", "linear", "cosine"),
    "training__gradient_clip": (1.0, "null"),
    "training__warmup": (0, 1),
    "training__optimizer": (
        "adamw",
        "adamw_8bit",
        "adafactor",
        "prodigy",
        "schedule_free_adamw",
        "lion",
        "torch.optim:SGD",
    ),
    "training__pivotal": (0.0, 0.5),
    "training__text_encoder_stop": (1.0, 0.5),
    "training__text_encoder_learning_rate": ("null", 1e-4),
    "ema__schedule": ("none", "constant", "power"),
    "objective__loss": ("l2", "huber", "smooth_l1"),
    "objective__huber_schedule": ("snr", "exponential", "constant"),
    "objective__weighting": ("uniform", "min_snr", "soft_min_snr", "debiased", "p2"),
    "objective__noise_offset": (0.0, 0.1),
    "objective__pyramid_noise": (0.0, 0.3),
    "objective__input_perturbation": (0.0, 0.1),
    "objective__zero_terminal_snr": ("false", "true"),
    "objective__timesteps": ("uniform", "logit_normal", "cubic"),
    "objective__timestep_min": (0, 100),
    "objective__timestep_max": ("null", 900),
    "objective__mask_outside": ("null", 0.1),
    "objective__caption_dropout": (0.0, 0.5),
    "data__resolution": ("null", 40),
    "data__aspect": ("square", "buckets"),
    "data__enlarge": ("false", "true"),
    "data__crop": ("center", "random"),
    "data__mirror": ("false", "true"),
    "data__cache": ("cache", "null"),
    "prior": ("cached", "null", "live", "subject", "folder"),
    "prior__target": ("data", "base"),
    "prior__weight_end": ("null", 0.5),
    "prior__caption_dropout": ("null", 0.5),
    "subjects": ("one", "two"),
}
# What excludes what, and why it has to.
EXCLUDED: list[Mapping[str, object]] = [
    # arXiv 2305.08891, section 3.3: pure noise says nothing about the picture
    {"base": "eps", "objective__zero_terminal_snr": "true"},
    {"prior": "subject", "prior__target": "data"},  # its own pictures would be the class
    {"prior": "null", "prior__target": "base"},  # nothing to predict
    {"prior": "null", "prior__weight_end": 0.5},
    {"prior": "null", "prior__caption_dropout": 0.5},
    {"prior": "folder", "subjects": "two"},  # a folder holds one class
    {"data__aspect": "square", "data__enlarge": "true"},  # squares are enlarged without
    # no text encoder is trained at any rate, up to any step
    {"model__train_text_encoder": "false", "training__text_encoder_stop": 0.5},
    {"model__train_text_encoder": "false", "training__text_encoder_learning_rate": 1e-4},
    {"model__train_text_encoder": "false", "adapter__text_encoder_rank": 2},
    {"adapter": "oft", "adapter__conv": "true"},  # it is for linear layers
    # nothing uses these
    {"adapter": "null", "adapter__dropout": 0.2},
    {"adapter": "null", "adapter__conv": "true"},
    # what is in half is computed so
    *({"training__precision": "fp32", "adapter__frozen": way} for way in ("half", "nf4")),
    *({"adapter": "null", "adapter__frozen": way} for way in ("half", "nf4")),
    {"adapter": "null", "adapter__text_encoder_rank": 2},
    {"adapter": "null", "adapter__timestep_rank": 2},
    # these have no components that could be left out
    *({"adapter": kind, "adapter__timestep_rank": 2} for kind in KINDS if kind != "lora"),
    # they step one weight at a time, the second before there is the whole gradient
    *(
        {key: on, "training__optimizer": optimizer}
        for key, on in (("training__weights", "bf16"), ("training__fused_backward", "true"))
        for optimizer in ("prodigy", "schedule_free_adamw", "torch.optim:SGD")
    ),
    # an adapter's weights are few
    *({"training__weights": "bf16", "adapter": kind} for kind in KINDS),
    *({"training__weights": "bf16", "adapter__frozen": way} for way in ("half", "nf4")),
    {"training__weights": "bf16", "adapter__dropout": 0.2},
    {"training__weights": "bf16", "adapter__conv": "true"},
    {"training__weights": "bf16", "adapter__text_encoder_rank": 2},
    {"training__weights": "bf16", "adapter__timestep_rank": 2},
    {"training__weights": "bf16", "training__precision": "fp32"},  # computed with as it is kept
    {"training__weights": "bf16", "training__precision": "16-mixed"},
    {"training__fused_backward": "true", "training__precision": "16-mixed"},
    {"training__fused_backward": "true", "training__gradient_clip": 1.0},
    {"training__fused_backward": "true", "training__accumulate": 2},
    {"training__fused_backward": "true", "training__pivotal": 0.5},
    # it finds one rate for everything
    {"training__optimizer": "prodigy", "training__text_encoder_learning_rate": 1e-4},
]


def allowed(row: Mapping[str, object]) -> bool:
    return not any(all(row.get(k) == v for k, v in pair.items()) for pair in EXCLUDED)


def pairs_of() -> set[frozenset[tuple[str, object]]]:
    """Every allowed pair of two options' values."""
    return {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(OPTIONS, 2)
        for x in OPTIONS[a]
        for y in OPTIONS[b]
        if allowed({a: x, b: y})
    }


def covering() -> list[dict[str, object]]:
    """Few combinations in which every allowed pair of two options' values occurs (greedily)."""
    pairs, rows = pairs_of(), []
    while pairs:
        row: dict[str, object] = dict(min(pairs, key=lambda pair: sorted(map(str, pair))))
        for name in sorted(OPTIONS, key=lambda name: -len(OPTIONS[name])):
            if name in row:
                continue
            fitting = [v for v in OPTIONS[name] if can_be_completed({**row, name: v})]
            new = {
                value: sum(frozenset([(name, value), other]) in pairs for other in row.items())
                for value in fitting
            }
            row[name] = max(fitting, key=new.__getitem__)
        pairs -= {frozenset(both) for both in itertools.combinations(row.items(), 2)}
        rows.append({name: row[name] for name in OPTIONS})
    return rows


def can_be_completed(row: dict[str, object]) -> bool:
    """Whether the options that are not in the row still have values that go with it."""
    if not allowed(row):
        return False
    left = sorted({name for pair in EXCLUDED for name in pair} - set(row))
    return not left or any(can_be_completed({**row, left[0]: value}) for value in OPTIONS[left[0]])
