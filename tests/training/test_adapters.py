"""Training of adapters: the base untouched, checkpoints of the adapter alone, exact resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.models.base import load_base
from tests.models.test_adapters import fingerprint
from tests.training.job import run_jobs, train
from tests.training.test_processes import processes
from tests.workspace import weights

TinyFolder = Callable[[str], Path]


def test_resume_is_exact_and_the_base_untouched(
    tmp_path: Path, tiny_base_folder: TinyFolder
) -> None:
    """Dropout draws from global random state, which a resumed run has to have too."""
    folder = tiny_base_folder("eps")
    own = {"kind": "dora", "rank": 4, "dropout": 0.3, "alpha": 2.0, "conv": True}
    options: dict[str, Any] = {"adapter": own, "ema": True}
    straight, *_ = train(tmp_path / "straight", folder, 3, **options)
    train(tmp_path / "resumed", folder, 2, save_every=1, **options)
    torch.rand(7)  # another state than that of the run that went through
    resumed, *_ = train(tmp_path / "resumed", folder, 3, resume=True, **options)
    ends = [torch.load(tmp_path / run / "resume.ckpt") for run in ("straight", "resumed")]
    states = [end["state_dict"] for end in ends]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    moments = [end["optimizer_states"][0]["state"] for end in ends]
    for number, state in moments[0].items():
        for name, value in state.items():
            assert torch.equal(value, moments[1][number][name])
    for module in (straight, resumed):
        base = load_base(folder)
        before = fingerprint(base)
        base.unet = module.trained["unet"].network
        base.text_encoder = module.trained["text_encoder"].network
        assert fingerprint(base) == before, "frozen weights are bit for bit those of the base"


def test_checkpoints_hold_the_adapter_alone(tmp_path: Path, tiny_base_folder: TinyFolder) -> None:
    module, *_ = train(tmp_path, tiny_base_folder("eps"), 1, adapter={"rank": 2})
    saved = torch.load(tmp_path / "resume.ckpt")
    keys = set(saved["state_dict"])
    assert keys and all(key.startswith("trained.") and ".lora_" in key for key in keys)
    trained = sum(p.numel() for p in module.parameters())
    assert sum(t.numel() for t in saved["state_dict"].values()) == trained < 10_000
    moments = saved["optimizer_states"][0]["state"]
    assert len(moments) == len(keys)
    groups = {
        group["name"]: group["params"] for group in saved["optimizer_states"][0]["param_groups"]
    }
    assert set(groups) == {"unet", "text_encoder"}


def test_half_precision_and_checkpointing_run(tmp_path: Path, tiny_base_folder: TinyFolder) -> None:
    for kind in ("dora", "oft"):
        own = {"kind": kind, "rank": 4}
        module, *_ = train(
            tmp_path / kind, tiny_base_folder("eps"), 2, adapter=own, precision="bf16-mixed"
        )
        for parameter in module.parameters():
            assert parameter.dtype == torch.float32 and parameter.isfinite().all()


def test_two_processes_train_what_one_does(tmp_path: Path, tiny_base_folder: TinyFolder) -> None:
    folder = tiny_base_folder("eps")
    common: dict[str, Any] = {
        "steps": 4,
        "accumulate": 1,
        "adapter": {"rank": 4, "conv": True},
        "save_every": 4,
    }
    made = run_jobs(
        folder, {**common, "run": tmp_path / "two", "hardware": processes(2)}, processes=2
    )
    assert made.returncode == 0, made.stderr
    train(tmp_path / "one", folder, **common)
    for part in ("unet", "text_encoder"):
        one, two = (weights(tmp_path / name, 4, part) for name in ("one", "two"))
        start = torch.cat([tensor.flatten() for tensor in one.values()])
        end = torch.cat([two[key].flatten() for key in one])
        assert (start - end).norm() < 1e-4 * start.norm()
