"""Every kind of run, from pictures to files: trained, killed, gone on with, exported, drawn."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import main
from ldm.checkpoint.snapshots import read_manifest
from ldm.data.sizes import sizes_of_whole
from ldm.models.base import BaseModel, load_base
from ldm.models.choices import Choices
from ldm.models.unet import predict
from ldm.run import finish
from ldm.run.trained import load_model
from ldm.training import DreamBoothModule
from scripts import export, sample
from tests.forked import forked
from tests.workspace import Workspace, weights

Place = Callable[[str], Workspace]


def adapter(kind: str) -> dict[str, object]:
    own: dict[str, object] = {"adapter__kind": kind, "adapter__rank": 4}
    if kind != "oft":
        own |= {"adapter__alpha": 2.0, "adapter__conv": "true", "adapter__text_encoder_rank": 2}
    return {**own, "training__learning_rate": 1e-2}


# The base, and what is set.
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "full": ("eps", {}),
    "v": ("v", {"objective__zero_terminal_snr": "true"}),
    "sdxl": ("sdxl", {"training__pivotal": 0.5, "ema__schedule": "power"}),
    "buckets": ("eps", {"data__aspect": "buckets", "data__crop": "random", "data__crops": 2}),
    **{kind: ("eps", adapter(kind)) for kind in ("lora", "dora", "rslora", "loha", "lokr", "oft")},
}


@pytest.fixture(scope="module")
def place_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Callable[[str], Path]
) -> Place:
    places: dict[str, Workspace] = {}

    def place(kind: str) -> Workspace:
        if kind not in places:
            places[kind] = Workspace(tmp_path_factory.mktemp(kind), tiny_base_folder(kind))
        return places[kind]

    return place


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the process that is killed: the order of summation shows in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_and_die(words: list[str]) -> None:
    """`main.py` up to the second step."""
    step = DreamBoothModule.training_step

    def training_step(module: DreamBoothModule, batches: Any, batch_idx: int) -> Any:
        if batches[0]["step"] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, batches, batch_idx)

    setattr(DreamBoothModule, "training_step", training_step)  # noqa: B010
    main.main(words)


@torch.no_grad()
def prediction(base: BaseModel) -> Tensor:
    base.unet.eval()
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    text = base.text.encode(["a drawing of sks robot", "a dog"], "cpu")
    return predict(base.unet, noisy, torch.tensor([3, 700]), text, sizes_of_whole(32, 32, 2))


def picture(place: Workspace, *source: object) -> np.ndarray:
    words = ["--prompt", "a photo of sks robot", "--n", "1", "--steps", "2", "--device", "cpu"]
    out = place.folder / "drawn"
    words += ["--dtype", "fp32", "--memory", "fast", "--out", str(out)]
    assert sample.main([*map(str, source), *words]) == 0
    (path,) = out.glob("0*.png")
    with Image.open(path) as opened:
        drawn = np.asarray(opened, dtype=np.int16)
    path.unlink()
    return drawn


@pytest.mark.parametrize("case", CASES)
def test_a_run_and_what_is_made_of_it(
    place_of: Place, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings = CASES[case]
    place = place_of(kind)
    whole = place.train(f"whole-{case}", **settings)
    killed = forked(train_and_die, place.words("--name", f"killed-{case}", **settings))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (run,) = place.logs.glob(f"*_killed-{case}")
    ends: list[Tensor] = []
    conclude = finish.conclude

    def look(config: Any, run: Path, ready: Any, job: Any) -> bool:
        ends.append(prediction(ready.base))
        return conclude(config, run, ready, job)

    monkeypatch.setattr(finish, "conclude", look)
    assert main.main(["--resume", str(run)]) == 0
    check_same_weights(whole, run, "text_encoder_2" if case == "sdxl" else "text_encoder")
    (wanted,) = ends
    assert (wanted - prediction(load_base(place.base))).abs().max() > 1e-3

    folder, file = exported(run, "diffusers"), exported(run, "single-file")
    for made in (folder, file):
        torch.testing.assert_close(prediction(load_base(made)), wanted, rtol=0, atol=1e-5)
    if "adapter__kind" in settings:
        assert read_manifest(run / "snapshots" / "step-000002")["config"]["adapter"]["kind"] == case
        for read in adapters_read(place, run, case):
            torch.testing.assert_close(prediction(read), wanted, rtol=0, atol=1e-5)
    drawn = picture(place, "--run", run, "--snapshot", "last")
    assert abs(drawn - picture(place, "--model", folder)).max() <= 1


def check_same_weights(whole: Path, resumed: Path, last_encoder: str) -> None:
    """Of every file of the last snapshot, bit for bit; and all that is in it is trained."""
    names = sorted(path.name for path in (whole / "snapshots/step-000002").glob("*.safetensors"))
    assert {"unet.safetensors", f"{last_encoder}.safetensors"} <= set(names)
    for part in (name.removesuffix(".safetensors") for name in names):
        one, other = weights(whole, 2, part), weights(resumed, 2, part)
        assert one.keys() == other.keys() and not any("base_layer" in key for key in one)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), part
        before = weights(whole, 1, part)
        assert any(not torch.equal(tensor, before[key]) for key, tensor in one.items()), part


def exported(run: Path, form: str) -> Path:
    """What scripts/export.py makes of the last snapshot: a folder, or the file in one."""
    words = ["--run", str(run), "--snapshot", "last", "--format", form]
    assert export.main(words) == 0
    out = run / f"export-{form}"
    return next(out.glob("*.safetensors")) if form in ("single-file", "kohya") else out


def adapters_read(place: Workspace, run: Path, kind: str) -> Iterator[BaseModel]:
    """Bases with the adapter's files, read by diffusers or peft."""
    files = []
    if kind == "oft":
        assert export.main(["--run", str(run), "--snapshot", "last", "--format", "kohya"]) == 2
        assert not (run / "export-kohya").exists()
    else:
        files.append(exported(run, "kohya"))
    folder = exported(run, "lora")
    if kind in ("lora", "rslora", "dora"):
        for file in (*files, *folder.glob("*.safetensors")):
            yield load_model(str(place.base), Choices(), [(file, 1.0)])
        return
    from peft import PeftModel

    base = load_base(place.base)
    base.unet = PeftModel.from_pretrained(base.unet, folder / "unet")
    base.text_encoder = PeftModel.from_pretrained(base.text_encoder, folder / "text_encoder")
    yield base
