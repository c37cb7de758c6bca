"""Two text encoders in training: one embedding each, killed and gone on with, on two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.training.phases import EMBEDDING, TEXT_ENCODER, groups_of
from tests.training.job import build_module, run_jobs, train
from tests.training.test_phases import OPTIMIZERS, watched

BaseFolder = Callable[[str], Path]
FIRST, SECOND = (f"trained.text_encoder{n}." for n in ("", "_2"))


def rows(base: Path) -> list[list[int]]:
    """The identifier's token in each vocabulary."""
    tokenizers = build_module(base).text.tokenizers
    return [[tokenizer.convert_tokens_to_ids("sks</w>")] for tokenizer in tokenizers]


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw"])
def test_a_row_of_each_embedding_then_everything_then_the_unet(
    tiny_base_folder: BaseFolder, tmp_path: Path, name: str
) -> None:
    base = tiny_base_folder("sdxl")
    identifiers = rows(base)
    phases = {"pivotal": 2, "text_encoder_stop": 3, "tokens": identifiers}
    optimizer = {"weight_decay": 0.1, "optimizer": name, "schedule": "constant", **OPTIMIZERS[name]}
    module, watch = watched(base, tmp_path, 5, phases, optimizer=optimizer)
    keys = [key for key in watch.states[0] if key.endswith("token_embedding.weight")]
    assert [key.startswith((FIRST, SECOND)) for key in keys] == [True, True]
    for step in (0, 1):
        assert watch.moved(step) == set(keys)
        for key, own in zip(keys, identifiers, strict=True):
            change = (watch.states[step][key] != watch.states[step + 1][key]).any(1)
            assert change.nonzero().flatten().tolist() == own
    names = {name.split(".")[1] for name in watch.moved(2)}
    assert names == {"unet", "text_encoder", "text_encoder_2"}
    assert {name.split(".")[1] for name in watch.moved(4)} == {"unet"}


def test_what_is_never_read_is_in_no_group_and_does_not_move(
    tiny_base_folder: BaseFolder, tmp_path: Path
) -> None:
    base = tiny_base_folder("sdxl")
    module, watch = watched(base, tmp_path, 3, {}, optimizer={"weight_decay": 0.1})
    unread = {weight.data_ptr() for weight in module.text.unread()}
    moved = {key for step in range(3) for key in watch.moved(step)}
    still = {key for key in watch.states[0] if key.startswith((FIRST, SECOND))} - moved
    weights = dict(module.named_parameters())
    assert {weights[key].data_ptr() for key in still} == unread and unread
    groups = groups_of(dict(module.trained.items()), separate_embedding=True)
    assert list(groups) == ["unet", TEXT_ENCODER, EMBEDDING]
    assert len(groups[EMBEDDING]) == 2
    assert not unread & {weight.data_ptr() for group in groups.values() for weight in group}


def test_each_sample_is_predicted_with_its_own_sizes(tiny_base_folder: BaseFolder) -> None:
    module = build_module(tiny_base_folder("sdxl"))
    seen = []
    module.trained["unet"].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    sizes, latents = torch.arange(18.0).view(3, 6), torch.zeros(3, 4, 8, 8)
    taught: list[Any] = []

    def teacher(noisy: Any, t: Any, prompts: list[str], sizes: Any) -> torch.Tensor:
        taught.append((prompts, sizes))
        return torch.zeros_like(noisy)

    module.teacher = teacher  # type: ignore[assignment]
    batch: dict[str, Any] = {
        "mean": latents,
        "std": latents,
        "sizes": sizes,
        "prompts": ["a dog", "a robot", "a dog"],
        "names": ["a", "b", "c"],
        "weight": torch.ones(3),
        "mask": None,
        "is_prior": torch.tensor([False, True, True]),
        "index": torch.arange(3),
        "step": 0,
    }
    module.training_step(module.on_before_batch_transfer([batch], 0), 0)
    (added,) = seen
    assert torch.equal(added["time_ids"], sizes)
    torch.testing.assert_close(added["text_embeds"], module.encode(batch["prompts"]).pooled)
    ((prompts, own),) = taught
    assert prompts == ["a robot", "a dog"] and torch.equal(own, sizes[1:])


def weights_of(run: Path) -> torch.Tensor:
    files = sorted((run / "snapshots/step-000004").glob("*.safetensors"))
    assert len(files) == 6, "UNet and two text encoders, and an average of each"
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def test_two_processes_learn_what_one_learns(tiny_base_folder: BaseFolder, tmp_path: Path) -> None:
    """Without a search for unused parameters: there are none."""
    base = tiny_base_folder("sdxl")
    common: dict[str, Any] = {"steps": 4, "accumulate": 1, "batch": 4, "ema": True}
    both = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    job = {**common, "run": tmp_path / "two", "hardware": both}
    made = run_jobs(base, job, processes=2)
    assert made.returncode == 0, made.stderr
    train(tmp_path / "one", base, **common)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert (one - two).norm() < 1e-5 * one.norm()
