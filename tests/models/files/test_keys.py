"""Names and shapes of the published checkpoints: tables, the reference implementation, ours."""

import json
import math
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.models.files.architectures import known_configs
from ldm.models.files.keys import Kind, places_of, stored_as
from ldm.models.files.networks import empty_network
from ldm.models.files.recognise import recognise, unexpected
from ldm.models.files.single_file import read_single_file
from tests.models.files.ldm_reference import SIZES
from tests.models.files.ldm_reference_text import LatentDiffusion, never_in_diffusers

KINDS: list[Kind] = ["sd1", "sd2", "sdxl"]
Shapes = dict[str, tuple[int, ...]]
# Parameters of the published models: model cards and papers (SDXL: arXiv 2307.01952, table 1).
PARAMETERS = {
    ("sd1", "model.diffusion_model."): 859_520_964,
    ("sd1", "first_stage_model."): 83_653_863,
    ("sd1", "cond_stage_model."): 123_060_480,
    ("sd2", "model.diffusion_model."): 865_910_724,
    ("sdxl", "model.diffusion_model."): 2_567_463_684,
    ("sdxl", "conditioner.embedders.1."): 694_659_841,
}
POSITIONS = "transformer.text_model.embeddings.position_ids"  # numbers 0 to 76, not a weight


def table(kind: Kind) -> Shapes:
    """Name -> shape, of every tensor in the published checkpoint (v1-5-pruned-emaonly,
    v2-1_768-ema-pruned, sd_xl_base_1.0) that is a network's."""
    found = {}
    for line in (Path(__file__).parent / "tables" / f"{kind}.txt").read_text().splitlines():
        name, _, shape = line.partition(" ")
        found[name] = tuple(int(size) for size in shape.split(",") if size)
    return found


@pytest.fixture(scope="module")
def originals() -> dict[str, Shapes]:
    """Kind -> name -> shape, of every weight in the published checkpoint."""
    tables = {kind: table(kind) for kind in KINDS}
    return {
        kind: {name: shape for name, shape in shapes.items() if not name.endswith(POSITIONS)}
        for kind, shapes in tables.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_implementation_has_the_published_names_and_shapes(kind: Kind) -> None:
    with torch.device("meta"):
        state = LatentDiffusion(SIZES[kind]).state_dict()
    published = {n: shape for n, shape in table(kind).items() if not n.endswith(POSITIONS)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published


@pytest.mark.parametrize("kind", KINDS)
def test_original_has_the_published_number_of_parameters(
    originals: dict[str, Shapes], kind: Kind
) -> None:
    for (of, prefix), count in PARAMETERS.items():
        if of == kind:
            shapes = [s for name, s in originals[kind].items() if name.startswith(prefix)]
            assert sum(torch.Size(shape).numel() for shape in shapes) == count, prefix


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_and_shape_is_the_originals(originals: dict[str, Shapes], kind: Kind) -> None:
    ours: Shapes = {}
    for part, config in known_configs(kind, "epsilon").items():
        state = empty_network(Path("none"), part, config).state_dict()
        places = places_of(kind, part, state)
        for name, keys in stored_as(places).items():
            shapes = {places[key].shape(state[key].shape) for key in keys}
            assert len(shapes) == 1 and len(keys) in (1, 3)
            assert name not in ours
            ours[name] = shapes.pop()
    left_out = never_in_diffusers(SIZES[kind])
    assert ours == {n: shape for n, shape in originals[kind].items() if n not in left_out}


@pytest.mark.parametrize("kind", KINDS)
def test_originals_are_recognised_with_all_that_training_left_in_them(
    originals: dict[str, Shapes], kind: Kind
) -> None:
    own = originals[kind]
    more = {
        "betas": (1000,),
        "alphas_cumprod": (1000,),
        "alphas_cumprod_prev": (1000,),
        "sqrt_one_minus_alphas_cumprod": (1000,),
        "log_one_minus_alphas_cumprod": (1000,),
        "posterior_mean_coef1": (1000,),
        "model_ema.decay": (),
        "model_ema.diffusion_modelout2weight": (4, 320, 3, 3),
    }
    more = {n: shape for n, shape in table(kind).items() if n not in own} | (
        {} if kind == "sdxl" else more
    )
    assert recognise(Path("any"), {**own, **more}) == kind
    expected = set(own) - never_in_diffusers(SIZES[kind])
    assert unexpected([*own, *more], expected) == []
    wrong = "model.diffusion_model.input_blocks.12.0.weight"
    assert unexpected([*own, wrong], expected) == [wrong]


def file_of(path: Path, shapes: Shapes) -> Path:
    """A safetensors file in half precision whose content, all zeros, takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_another_shape_than_the_published_one_stops_with_its_name(
    originals: dict[str, Shapes], kind: Kind, tmp_path: Path
) -> None:
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    rows, columns = originals[kind][name]
    path = file_of(tmp_path / "m.safetensors", {**originals[kind], name: (rows, columns + 1)})
    with pytest.raises(UserError) as raised:
        read_single_file(path, prediction_type="epsilon")
    wrong, right = [rows, columns + 1], [rows, columns]
    assert f"it has {name} of shape {wrong}, where {right} is right; what other" in str(
        raised.value
    )
