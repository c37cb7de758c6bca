"""Adapters in networks: what they change, what stays, and what they are merged into."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.adapters import Adapter, AdapterSettings, add_adapters, merged
from ldm.models.adapters.extract import extract_lora, factors
from ldm.models.adapters.settings import Kind
from ldm.models.adapters.targets import find_layers
from ldm.models.base import BaseModel, load_base
from ldm.models.trainable import prepare_training

TinyFolder = Callable[[str], Path]
KINDS = get_args(Kind)


def networks_of(base: BaseModel) -> dict[str, nn.Module]:
    return {"unet": base.unet, "text_encoder": base.text_encoder}


def settings_of(kind: str, **changes: Any) -> AdapterSettings:
    own = {} if kind == "oft" else {"alpha": 2.0, "text_encoder_rank": 2, "conv": True}
    return AdapterSettings(kind=kind, rank=4, **{**own, **changes})  # type: ignore[arg-type]


def predict(base: BaseModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    text = base.text.encode(["a drawing of sks robot", "a dog"], "cpu")
    return base.unet(noisy, torch.tensor([3, 700]), encoder_hidden_states=text.states).sample


def disturb(adapters: Mapping[str, Adapter], seed: int = 0) -> None:
    """As if trained: every weight of the adapters is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters.values():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def fingerprint(base: BaseModel) -> str:
    """Of all weights of the base's own, whatever layers they lie in now."""
    digest = hashlib.sha256()
    for network in networks_of(base).values():
        for name, parameter in sorted(network.named_parameters()):
            if ".default" not in name and not name.endswith(".rows"):
                name = name.replace(".base_layer", "").replace(".embedding.weight", ".weight")
                digest.update(name.encode())
                digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_merges_and_leaves_the_base(
    tiny_base_folder: TinyFolder, kind: str
) -> None:
    from peft import get_peft_model_state_dict

    base = load_base(tiny_base_folder("eps"))
    before, untouched = fingerprint(base), predict(base)
    adapters = add_adapters(networks_of(base), settings_of(kind))
    trained = prepare_training(base, True, False, adapters=adapters)
    torch.testing.assert_close(predict(base), untouched, rtol=0, atol=1e-5)
    parameters = [p for module in trained.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(2):
        predict(base).square().mean().backward()
        assert all(p.grad is not None for p in parameters), "each reaches the prediction"
        optimizer.step()
    assert fingerprint(base) == before
    for name, adapter in adapters.items():
        assert adapter.state_dict().keys() == get_peft_model_state_dict(adapter.network).keys()
        assert not any("base_layer" in key for key in adapter.state_dict()), name
        adapter.eval()
    with torch.no_grad():
        adapted = predict(base)
        assert (adapted - untouched).abs().max() > 1e-3
        with merged(adapters):
            assert not any("base_layer" in key for key in base.unet.state_dict())
            torch.testing.assert_close(predict(base), adapted, rtol=0, atol=1e-5)
            assert fingerprint(base) != before
        assert fingerprint(base) == before, "bit for bit"
        torch.testing.assert_close(predict(base), adapted, rtol=0, atol=0)


def test_a_merge_for_good_is_in_place(tiny_base_folder: TinyFolder) -> None:
    """Large models are merged where there is no room for them twice."""
    base = load_base(tiny_base_folder("eps"))
    adapters = add_adapters({"unet": base.unet}, settings_of("lora"))
    disturb(adapters)
    (adapter,) = adapters.values()
    weights = {name: layer.get_base_layer().weight for name, layer in adapter.layers.items()}
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in weights.items()}
    adapted = predict(base)
    adapter.merge()
    torch.testing.assert_close(predict(base), adapted, rtol=0, atol=1e-5)
    for name, (place, weight) in before.items():
        assert weights[name].data_ptr() == place and not torch.equal(weights[name], weight)
    with pytest.raises(ValueError, match="merged already"):
        adapter.merge()


@pytest.mark.parametrize("keep", (False, True))
def test_a_share_of_what_was_learnt(tiny_base_folder: TinyFolder, keep: bool) -> None:
    """Weights lie on the straight line from the base's own to the learnt ones; rows do too."""
    found = {}
    for share in (0.0, 0.5, 1.0):
        base = load_base(tiny_base_folder("eps"))
        own = weights_of(base)
        adapters = add_adapters(
            networks_of(base), settings_of("lora"), encoders={"text_encoder": base.text_encoder},
            tokens={"text_encoder": [5]},
        )  # fmt: skip
        disturb(adapters)
        for adapter in adapters.values():
            adapter.merge(share, keep=keep)
        found[share] = weights_of(base)
        if keep:
            for adapter in adapters.values():
                adapter.unmerge()
                adapter.take_out()
            assert all(torch.equal(own[key], new) for key, new in weights_of(base).items())
    moved = [key for key in own if not torch.equal(own[key], found[1.0][key])]
    assert any("token_embedding" in key for key in moved) and any("to_q" in key for key in moved)
    for key, before in own.items():
        torch.testing.assert_close(found[0.0][key], before, rtol=0, atol=0)
        half = (before + found[1.0][key]) / 2
        torch.testing.assert_close(found[0.5][key], half, rtol=0, atol=1e-6)


def weights_of(base: BaseModel) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{key}": tensor.clone()
        for part, network in base.networks.items()
        for key, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("kind", ("lora", "dora"))
def test_checkpointing_gives_the_same_gradients(tiny_base_folder: TinyFolder, kind: str) -> None:
    """Also where nothing before an adapter requires gradients."""
    found = []
    for checkpointing in (False, True):
        base = load_base(tiny_base_folder("eps"))
        adapters = add_adapters(networks_of(base), settings_of(kind), seed=1)
        prepare_training(base, True, checkpointing, adapters=adapters)
        disturb(adapters)
        predict(base).square().mean().backward()
        found.append([p.grad for a in adapters.values() for p in a.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        assert plain is not None and checkpointed is not None
        torch.testing.assert_close(plain, checkpointed)


def test_first_weights_depend_on_the_seed_alone(tiny_base_folder: TinyFolder) -> None:
    states = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(noise))
        base = load_base(tiny_base_folder("eps"))
        torch.manual_seed(noise)
        adapters = add_adapters(networks_of(base), AdapterSettings(), seed=seed)
        assert torch.equal(torch.rand(3), expected), "global random state is as it was"
        states.append(torch.cat([p.flatten() for a in adapters.values() for p in a.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_rows_of_the_embedding_are_trained_and_merged(tiny_base_folder: TinyFolder) -> None:
    """Also where no layer of the text encoder has an adapter."""
    for layers in (True, False):
        base = load_base(tiny_base_folder("eps"))
        before, untouched = fingerprint(base), predict(base)
        (token,) = base.tokenizer("sks", add_special_tokens=False).input_ids
        networks = networks_of(base) if layers else {"unet": base.unet}
        embedded = {"text_encoder": base.text_encoder}
        wanted = {"text_encoder": [token]}
        adapters = add_adapters(networks, settings_of("lora"), 0, embedded, wanted)
        prepare_training(base, layers, False, embedding=True, adapters=adapters)
        torch.testing.assert_close(predict(base), untouched, rtol=0, atol=1e-5)
        (rows,) = adapters["text_encoder"].rows
        assert rows.rows.shape == (1, 16)
        assert len(adapters["text_encoder"].state_dict()) == (1 + 2 * 8 if layers else 1)
        predict(base)[1:].square().sum().backward()
        assert rows.rows.grad is not None and not rows.rows.grad.any(), "not in the other prompt"
        predict(base)[:1].square().sum().backward()
        assert rows.rows.grad.any()
        disturb(adapters)
        with torch.no_grad():
            adapted = predict(base)
            with merged(adapters):
                assert (
                    base.text_encoder.state_dict().keys()
                    == load_base(tiny_base_folder("eps")).text_encoder.state_dict().keys()
                )
                torch.testing.assert_close(predict(base), adapted, rtol=0, atol=1e-5)
        assert fingerprint(base) == before and (adapted - untouched)[1].abs().max() > 1e-3


def test_ranks_and_alphas_of_the_text_encoder() -> None:
    assert AdapterSettings(rank=8).sizes("text_encoder_2") == (8, 8.0)
    own = AdapterSettings(rank=8, text_encoder_rank=4)
    assert own.sizes("unet") == (8, 8.0) and own.sizes("text_encoder") == (4, 4.0)
    assert AdapterSettings(rank=8, alpha=2.0, text_encoder_rank=4).sizes("text_encoder")[1] == 2
    assert AdapterSettings(alpha=2.0, text_encoder_alpha=1.0).sizes("text_encoder")[1] == 1


def test_where_layers_are_looked_for(tiny_base_folder: TinyFolder) -> None:
    base = load_base(tiny_base_folder("eps"))
    both, unet = networks_of(base), {"unet": base.unet}
    everywhere = find_layers(both)
    assert len(everywhere["unet"]) == 4 * 8 and len(everywhere["text_encoder"]) == 2 * 4
    block = find_layers(unet, ["up_blocks.0.attentions.1"])["unet"]
    assert len(block) == 8 and all("up_blocks.0.attentions.1." in name for name in block)
    narrowed = find_layers(unet, ["up_blocks.0.attentions.1", "attn2", "to_k", "ff.net.2"])
    assert {name.split("transformer_blocks.0.")[1] for name in narrowed["unet"]} >= {"attn2.to_k"}
    assert len(find_layers(unet, ["mid_block", "to_k"])["unet"]) == 2
    convolutions = find_layers(unet, ["mid_block"], conv=True)["unet"]
    assert len(convolutions) == 8 + 4 and "mid_block.resnets.1.conv2" in convolutions
    assert find_layers(both, ["to_q", "layers.1"])["text_encoder"] == [
        f"encoder.layers.1.self_attn.{one}" for one in ("k_proj", "v_proj", "q_proj", "out_proj")
    ]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["up_blocks.0.attention.1"], "near are up_blocks.0.attentions.1"),
        (["to_k", "to_qq"], "adapter.targets=to_qq: no layer or block"),
        (["mid_block"], "none is in the text encoder"),
        (["mid_block.resnets", "layers.0"], "of the UNet no layer is left"),
    ],
)
def test_targets_that_match_nothing(
    tiny_base_folder: TinyFolder, targets: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        find_layers(networks_of(load_base(tiny_base_folder("eps"))), targets)


def test_blocks_of_oft_fit(tiny_base_folder: TinyFolder) -> None:
    networks = networks_of(load_base(tiny_base_folder("eps")))
    with pytest.raises(UserError, match=r"adapter.rank=5: .* is no multiple of it"):
        add_adapters(networks, AdapterSettings(kind="oft", rank=5))
    with pytest.raises(UserError, match="conv1 is a 3x3 convolution"):
        unet = {"unet": networks["unet"]}
        add_adapters(unet, AdapterSettings(kind="oft", rank=4, targets=["conv1"]))


def test_extracted_factors_are_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 9), (6, 5, 3, 3), (2, 9)):
        difference = torch.randn(*shape, generator=generator)
        down, up, lost = factors(difference, 3)
        assert down.shape == (3, *shape[1:]) and up.shape[:2] == (shape[0], 3)
        held = (up.flatten(1).double() @ down.flatten(1).double()).reshape(shape)
        torch.testing.assert_close(
            float((difference - held).square().sum()), lost, atol=1e-6, rtol=1e-4
        )
        values = torch.linalg.svdvals(difference.flatten(1).double())
        assert lost == pytest.approx(float(values[3:].square().sum()), rel=1e-5)


def test_a_lora_is_extracted_again(tiny_base_folder: TinyFolder) -> None:
    """What a LoRA changed has its rank: nothing is left out, at half of it something is."""
    trained = load_base(tiny_base_folder("eps"))
    own = add_adapters(networks_of(trained), AdapterSettings(rank=4, conv=True))
    disturb(own)
    with merged(own), torch.no_grad():
        wanted = predict(trained)
        for rank, left in ((4, 0.0), (2, 0.3)):
            base = load_base(tiny_base_folder("eps"))
            found, error = extract_lora(networks_of(base), networks_of(trained), rank)
            assert error == pytest.approx(left, abs=1e-3 if rank == 4 else 0.25)
            near = (predict(base) - wanted).abs().max()
            assert near < 1e-4 if rank == 4 else near > 1e-3
            assert found.keys() == {"unet", "text_encoder"}
    with pytest.raises(UserError, match="nothing to extract"):
        same = (networks_of(load_base(tiny_base_folder("eps"))) for _ in range(2))
        extract_lora(next(same), next(same), 4)


def test_size_of_rank_8_on_stable_diffusion_1() -> None:
    """The true shapes, without memory: less than 10 MB even in float32."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_attention_heads=12,
                    num_hidden_layers=12,
                )
            ),
        }
    assert sum(p.numel() for p in networks["unet"].parameters()) == 859_520_964
    found = find_layers(networks)
    assert len(found["unet"]) == 16 * 8 and len(found["text_encoder"]) == 12 * 4
    numbers = 0
    for name, layers in found.items():
        for layer in layers:
            weight = networks[name].get_submodule(layer).weight
            numbers += 8 * sum(weight.shape)
    assert 4 * numbers < 10e6 and 2 * numbers < 5e6
