"""Read a single-file checkpoint (LDM naming): Stable Diffusion 1.x, 2.x or XL.

What weights cannot tell comes from the file's own metadata where this program wrote it, and else is
that of the known architectures.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.errors import UserError
from ldm.models.files.architectures import ARCHITECTURES, NAMES, SCHEDULER, known_configs
from ldm.models.files.keys import UNET, Kind, Place, places_of
from ldm.models.files.networks import empty_network, fill_network, wrong_shapes
from ldm.models.files.recognise import recognise, unexpected
from ldm.models.files.tokenizer import find_tokenizer, from_texts, padded_with
from ldm.models.files.weights_file import WeightsFile, open_weights

log = logging.getLogger(__name__)

# Keys of a safetensors file's metadata. The first two are ours: JSON.
CONFIGS = "dreambooth.configs"  # {"kind", "parts": {part: config}, "scheduler", "tokenizer"}
ABOUT = "dreambooth.about"  # what an export says of itself
PREDICTION = "modelspec.prediction_type"  # https://github.com/Stability-AI/ModelSpec
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
EMA = "model_ema."


@dataclass(frozen=True)
class SingleFile:
    """What a single file becomes: networks in eval mode on the CPU, tokenizers, a scheduler."""

    kind: Kind
    parts: dict[str, Any]  # unet, vae, text_encoder, tokenizer; XL: text_encoder_2, tokenizer_2
    scheduler: Any
    zero_empty_prompt: bool  # see `TextEncoders`
    about: dict[str, Any]  # of an export of ours; else empty
    fingerprint: str


def read_single_file(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    tokenizer: str | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
) -> SingleFile:
    """Read a .safetensors or .ckpt file, strictly; the VAE in float32, all else in `dtype`.

    tokenizer: folder or hub id; None: what the file brings, or CLIP's. prediction_type: "epsilon"
    or "v_prediction", in place of what the file says. ema: the averaged weights of the UNet that
    training checkpoints hold. UserError: another kind of file or model, a damaged one, tensors that
    are missing, unexpected or of another shape, or what is not told and cannot be known.
    """
    file = open_weights(path)
    kind = recognise(file.path, file.shapes)
    own = own_configs(file)
    if own and own["kind"] != kind:
        raise UserError(f"model {file.path}: {CONFIGS} is of another model; export it again")
    prediction, told_by = _prediction_of(file, kind, own, prediction_type)
    configs = own["parts"] if own else known_configs(kind, prediction)
    empty = {part: empty_network(file.path, part, config) for part, config in configs.items()}
    places = {part: places_of(kind, part, net.state_dict()) for part, net in empty.items()}
    names = _names_in(file, places, ema)
    _check(file, kind, empty, places, names, written_here=bool(own))
    parts: dict[str, Any] = _tokenizers(file, own, tokenizer, empty)
    for part, network in empty.items():
        wanted = torch.float32 if part == "vae" else dtype
        parts[part] = fill_network(network, file, places[part], names, wanted)
    log.info("%s: %s, predicts %s (%s)", file.path, NAMES[kind], prediction, told_by)
    return SingleFile(
        kind,
        parts,
        _scheduler_of(file, own, prediction),
        bool(own.get("zero_empty_prompt", kind == "sdxl")),
        json.loads(file.metadata.get(ABOUT, "{}")),
        _fingerprint(file.path, parts, f"{prediction} {ema}"),
    )


def own_configs(file: WeightsFile) -> dict[str, Any]:
    """The configurations in a file that this program wrote; empty for any other file."""
    text = file.metadata.get(CONFIGS)
    if text is None:
        return {}
    try:
        own = json.loads(text)
        if own["kind"] and own["parts"]["vae"] and own["scheduler"] and own["tokenizer"]:
            return dict(own)
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(
        f"model {file.path}: its metadata {CONFIGS} is damaged; remove it (the sizes are then "
        "those of the known architectures) or export the model again"
    )


def _prediction_of(
    file: WeightsFile, kind: Kind, own: Mapping[str, Any], given: str | None
) -> tuple[str, str]:
    """What the UNet predicts, and who says so."""
    said = own["scheduler"].get("prediction_type") if own else None
    if said is None and "v_pred" in file.shapes:
        said = "v_prediction"
    if said is None and PREDICTION in file.metadata:
        said = _PREDICTIONS.get(file.metadata[PREDICTION].lower())
    if given is not None:
        if said not in (None, given):
            log.warning("model.prediction_type=%s is used; %s says %s", *(given, file.path, said))
        return given, "model.prediction_type"
    if said is not None:
        return str(said), "the file says so"
    usual = ARCHITECTURES[kind].usual_prediction
    if usual is None:
        raise UserError(
            f"model {file.path}: {NAMES[kind]} comes as epsilon (the 512 base models) and as "
            "v_prediction (the 768 models), and the file does not say which it is; give "
            "model.prediction_type=epsilon or model.prediction_type=v_prediction"
        )
    return usual, "as is usual; model.prediction_type can say otherwise"


def _names_in(
    file: WeightsFile, places: Mapping[str, Mapping[str, Place]], ema: bool
) -> dict[str, str]:
    """Name of each wanted tensor -> the one that is read, which is another for averaged weights."""
    names = {place.name: place.name for those in places.values() for place in those.values()}
    averaged = any(name.startswith(f"{EMA}diffusion_model") for name in file.shapes)
    if ema and not averaged:
        raise UserError(
            f"model.ema=true: {file.path} holds no averaged weights ({EMA}*); leave it false"
        )
    if averaged:
        log.info(
            "%s holds averaged weights of the UNet beside the ordinary ones: %s are read "
            "(model.ema=%s)",
            *(file.path, "the averaged ones" if ema else "the ordinary ones", str(ema).lower()),
        )
    if ema:  # the original's LitEma drops the dots: a buffer's name may hold none
        for name in names:
            if name.startswith(UNET):
                names[name] = EMA + name.removeprefix("model.").replace(".", "")
    return names


def _check(
    file: WeightsFile,
    kind: Kind,
    empty: Mapping[str, nn.Module],
    places: Mapping[str, Mapping[str, Place]],
    names: Mapping[str, str],
    written_here: bool,
) -> None:
    """UserError, naming them, for tensors that are missing, unexpected or of another shape."""
    problems = [f"lacks {name}" for name in names.values() if name not in file.shapes]
    problems += [
        f"has {name}, which no such model has" for name in unexpected(file.shapes, {*names})
    ]
    problems += [] if problems else wrong_shapes(file, empty, places, names)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        sizes = "" if written_here else "; what other programs wrote must have the published sizes"
        raise UserError(
            f"model {file.path}: not quite {NAMES[kind]}: it {'; it '.join(problems[:3])}"
            f"{more}{sizes}"
        )


def _tokenizers(
    file: WeightsFile, own: Mapping[str, Any], source: str | None, empty: Mapping[str, Any]
) -> dict[str, Any]:
    """The tokenizer of each text encoder: the words are the same, what fills up may differ."""
    found: dict[str, Any] = {}
    for part, network in empty.items():
        if not part.startswith("text_encoder"):
            continue
        name, config = part.replace("text_encoder", "tokenizer"), network.config
        texts = own["tokenizer"].get(name, {}) if own else {}
        brought = "tokenizer.json" in texts and source is None
        tokenizer = from_texts(texts) if brought else find_tokenizer(source)
        if texts:
            padding = json.loads(texts["tokenizer_config.json"])["pad_token"]
        else:  # OpenCLIP fills up with token 0
            padding = tokenizer.eos_token if config.hidden_act == "quick_gelu" else "!"
        found[name] = padded_with(tokenizer, padding, config.max_position_embeddings)
        if not brought and len(tokenizer) != config.vocab_size:
            where = f"model.tokenizer={source}" if source else "CLIP's tokenizer"
            raise UserError(
                f"{where}: has {len(tokenizer)} tokens, {file.path} {config.vocab_size}; give the "
                "tokenizer that the model was trained with"
            )
    return found


def _scheduler_of(file: WeightsFile, own: Mapping[str, Any], prediction: str) -> Any:
    import diffusers

    if own:
        config = dict(own["scheduler"])
        kind = getattr(diffusers, str(config.get("_class_name")), diffusers.DDIMScheduler)
        return kind.from_config(config, prediction_type=prediction)
    zero = "ztsnr" in file.shapes  # arXiv 2305.08891
    return diffusers.DDIMScheduler(
        **SCHEDULER,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero,
        timestep_spacing="trailing" if zero else "leading",
    )


def _fingerprint(path: Path, parts: Mapping[str, Any], settings: str) -> str:
    """sha256 (hex) over the file, the tokenizers' words and what was chosen."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for name, part in sorted(parts.items()):
        if name.startswith("tokenizer"):
            digest.update(f"{name} {part.pad_token} {part.model_max_length}".encode())
            digest.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    digest.update(settings.encode())
    return digest.hexdigest()
