"""Memory on the true architectures: predicted for many settings, measured where they were run.

    python -m tests.full_size run sd15 configs/lora.yaml data.resolution=512
    python -m tests.full_size prove sdxl configs/lora.yaml data.resolution=256 adapter.frozen=half
    python -m tests.full_size table

`run` trains two steps on a base of random weights (made once below --folder, 2 to 7 GB) with what
stands on the command line, prints predicted and measured peak memory, and keeps both in
bench/memory.json. `prove` then goes on with that run for a third step, exports it as a single file,
reads that back, and compares every tensor with the run's own (in float16). `table` writes
bench/memory.md: predictions for all rows below (nothing is made for them: seconds each), and what
was measured.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ldm.config import Config, load_config, split_command_line
from ldm.models.base import BaseModel, load_base
from ldm.models.files.architectures import NAMES, SCHEDULER, known_configs
from ldm.models.files.keys import Kind
from ldm.models.files.networks import empty_network
from ldm.models.pipeline import pipeline_of
from ldm.models.quantised import quantise
from ldm.run.adapters import adapters_of
from ldm.run.memory.prediction import GIB, memory_bytes
from ldm.run.prepare import Prepared, frozen_of
from ldm.run.subjects import find_inputs
from ldm.run.trained import base_dtype, frozen_bits, load_trained
from tests.conftest import TINY_WORDS, tiny_tokenizer
from tests.workspace import MAIN_JOB

ROOT = Path(__file__).parents[1]
RECORD, TABLE = ROOT / "bench" / "memory.json", ROOT / "bench" / "memory.md"
OVERLAYS: dict[str, tuple[Kind, str]] = {
    "sd15": ("sd1", "configs/sd15.yaml"),
    "sd21": ("sd2", "configs/sd21.yaml"),
    "sdxl": ("sdxl", "configs/sdxl.yaml"),
}
LORA = "configs/lora.yaml"
FUSED = "training.fused_backward=true training.gradient_clip=null"
# On top of a base's overlay, which has checkpointing and one subject and one class sample a step.
ROWS = (
    "training.precision=fp32",
    "training.precision=bf16-mixed",
    "training.precision=bf16-mixed training.optimizer=adamw_8bit",
    "training.precision=bf16-mixed training.optimizer=adafactor",
    f"training.precision=bf16-mixed training.optimizer=adafactor {FUSED}",
    "training.precision=bf16-mixed training.weights=bf16",
    "training.precision=bf16-mixed training.weights=bf16 training.optimizer=adafactor",
    f"training.precision=bf16-mixed training.weights=bf16 training.optimizer=adafactor {FUSED}",
    "training.precision=bf16-mixed training.optimizer=adamw_8bit prior=null",
    "training.precision=bf16-mixed training.optimizer=paged_adamw_8bit prior=null",
    "training.precision=bf16-mixed model.gradient_checkpointing=false",
    f"{LORA} training.precision=fp32",
    f"{LORA} training.precision=bf16-mixed",
    f"{LORA} training.precision=bf16-mixed adapter.frozen=half",
    f"{LORA} training.precision=bf16-mixed adapter.frozen=int8",
    f"{LORA} training.precision=bf16-mixed adapter.frozen=nf4",
    f"{LORA} training.precision=bf16-mixed model.train_text_encoder=false",
)


def base_of(kind: Kind, device: str) -> BaseModel:
    """Random weights on the CPU, in float16; or shapes alone, on the device "meta"."""
    configs = known_configs(kind, "v_prediction" if kind == "sd2" else "epsilon")
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    for part, config in configs.items():
        parts[part] = network = empty_network(Path(kind), part, config)
        if device != "meta":
            parts[part] = _filled(network)
    for name in [name for name in parts if name.startswith("text_encoder")]:
        tokenizer = tiny_tokenizer(TINY_WORDS)
        tokenizer.model_max_length = 77
        parts[name.replace("text_encoder", "tokenizer")] = tokenizer
    return BaseModel(
        **parts, scheduler=_scheduler(kind), source=kind, fingerprint="", vae_fingerprint=""
    )


def _filled(network: Any) -> Any:
    """Weights as small as those of a fresh network, and norms of one."""
    network.to_empty(device="cpu")
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))  # position ids
        elif "norm" in name and name.endswith("weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=0.02)
    return network.half()


def _scheduler(kind: Kind) -> Any:
    from diffusers import DDIMScheduler

    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    return DDIMScheduler(**SCHEDULER, prediction_type=prediction)


def folder_of(name: str, below: Path) -> Path:
    """A diffusers folder of random weights."""
    folder = below / name
    if not (folder / "model_index.json").is_file():
        pipeline_of(base_of(OVERLAYS[name][0], "cpu")).save_pretrained(folder)
    return folder


def configured(name: str, words: list[str]) -> Config:
    files, overrides = split_command_line([OVERLAYS[name][1], *words])
    return load_config([MAIN_JOB, *(ROOT / file for file in files)], overrides)


def predicted(name: str, words: list[str]) -> float:
    """GiB of a training step."""
    config, base = configured(name, words), base_of(OVERLAYS[name][0], "meta")
    base.to("meta", base_dtype(config))
    if bits := frozen_bits(config):
        quantise(base, bits)
    frozen = frozen_of(config, base)
    resolution = config.data.resolution or base.default_resolution
    ready = Prepared(base, list(find_inputs(config)), [], resolution, [], frozen)
    ready.adapters = adapters_of(config, base)
    return memory_bytes(config, ready) / GIB


def run(name: str, words: list[str], below: Path) -> dict[str, Any]:
    """Two steps in a process of its own; class images are not made: those of the subject are."""
    inside = {
        "model.base": folder_of(name, below),
        "logs": below / "logs",
        "data.cache": below / "cache",
        "samples.every": 0,
        "evaluation": "null",
        "training.steps": 2,
        "training.save_every": 2,
        "snapshots.every": 2,
        "trainer.accelerator": "cpu",
    }
    files, given = split_command_line([OVERLAYS[name][1], *words])
    if "prior=null" not in given:
        given = [*given, f"prior.folder={ROOT / 'data' / 'subjects' / 'robot_volt'}"]
    settings = [f"{key}={value}" for key, value in inside.items()]
    command = [sys.executable, "main.py", "--base", str(MAIN_JOB), *map(str, files)]
    command += [*settings, *given]
    plan = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"^memory +about ([\d.]+) GiB", plan.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(plan.stderr)
    measured = peak_gib(command)
    with (newest_run(below) / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "base": name,
        "options": " ".join(words),
        "predicted_gib": float(found[1]),
        "measured_gib": round(measured, 2),
        "seconds_per_step": round(float(last["seconds"]), 1),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
    }


def peak_gib(command: list[str]) -> float:
    """Run it; the most memory that it had without pages of files, which can be taken back."""
    peak = 0.0
    with subprocess.Popen(command, cwd=ROOT) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            if found := re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE):
                peak = max(peak, int(found[1]) * 1024 / GIB)
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def prove(name: str, words: list[str], below: Path) -> dict[str, Any]:
    """`run`, then a third step, an export, and what was exported read back."""
    result = run(name, words, below)
    folder = newest_run(below)
    again = ["--resume", str(folder), "training.steps=3", "training.save_every=3"]
    subprocess.run([sys.executable, "main.py", *again], cwd=ROOT, check=True)
    file = below / "exported.safetensors"
    kind = ["--format", "single-file", "--dtype", "fp16", "--out", str(file)]
    command = [sys.executable, "scripts/export.py", "--run", str(folder), *kind]
    subprocess.run(command, cwd=ROOT, check=True)
    own = digests_of_run(folder)
    read = digests(load_base(file, torch.float16))
    if different := [name for name in own if own[name] != read[name]]:
        raise SystemExit(f"not what the run has: {different}")
    return {**result, "file_gb": round(file.stat().st_size / 1e9, 2), "read_back": len(own)}


def digests_of_run(folder: Path) -> dict[str, str]:
    """Of the last snapshot, merged into its base."""
    trained = load_trained(folder, "last")
    for adapter in trained.adapters.values():
        adapter.merge()
    return digests(trained.base)


def digests(base: BaseModel) -> dict[str, str]:
    """Of each tensor of text encoders and UNet, in float16."""
    return {
        f"{part}.{key}": sha256(tensor.half().contiguous().numpy().tobytes()).hexdigest()
        for part, network in base.networks.items()
        for key, tensor in network.state_dict().items()
    }


def newest_run(below: Path) -> Path:
    return max((below / "logs").iterdir())


HEAD = """\
# Memory: predicted and measured

`python -m tests.full_size table`; measured rows: `python -m tests.full_size run BASE OPTIONS`: two
steps on random weights of the true architecture, on a CPU (two cores, 24 GiB), the most anonymous
resident memory of the process. The options stand on top of the base's overlay (one subject and one
class sample a step, gradient checkpointing).

| base | options | predicted GiB |
|---|---|---|"""


def with_result(known: list[dict[str, Any]], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Records with a new one, in the place of that of the same command: what a `run` does not
    find, what `prove` found of the export, stays."""
    same = [one for one in known if all(one[key] == result[key] for key in ("base", "options"))]
    merged = {key: value for one in [*same, result] for key, value in one.items()}
    return [*(one for one in known if one not in same), merged]


def table() -> str:
    lines = [HEAD]
    for name, (kind, overlay) in OVERLAYS.items():
        for row in ROWS:
            need = predicted(name, row.split())
            lines.append(f"| {NAMES[kind]}, {overlay} | {row} | {need:.1f} |")
    measured = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    if measured:
        lines += ["", "| base | options | predicted GiB | measured GiB | off by | seconds a step |"]
        lines.append("|---|---|---|---|---|---|")
    for one in measured:
        off = one["predicted_gib"] / one["measured_gib"] - 1
        threads = f"{one['seconds_per_step']} (threads: {one['threads']})"
        lines.append(
            f"| {one['base']} | {one['options']} | {one['predicted_gib']:.1f} | "
            f"{one['measured_gib']:.1f} | {off:+.0%} | {threads} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "prove", "table"))
    parser.add_argument("--folder", type=Path, default=Path("data/cache/full_size"))
    args, words = parser.parse_known_args()
    if args.what == "table":
        TABLE.write_text(table())
        return
    name, *options = words
    made = {"run": run, "prove": prove}[args.what]
    result = made(name, options, args.folder.resolve())
    known = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    RECORD.write_text(json.dumps(with_result(known, result), indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
