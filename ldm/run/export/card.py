"""The model card of an exported folder: README.md with the hub's front matter.

https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ldm.evaluation.metrics import Score
from ldm.evaluation.terms import figure, in_order, interval, term
from ldm.models.folder import is_hub_id

CARD, SAMPLES = "README.md", "samples.png"
_NO_LICENCE = "other"  # the hub's word for what is none of its list


def card_files(run: Path | None, about: Mapping[str, Any]) -> dict[str, bytes]:
    """The card and, of a run that drew one at this step, the sample grid; by file name."""
    grid = run / "samples" / f"step-{about['step']:06d}.png" if run else None
    files = {SAMPLES: grid.read_bytes()} if grid and grid.is_file() else {}
    return {CARD: model_card(about, SAMPLES in files).encode(), **files}


def model_card(about: Mapping[str, Any], samples: bool = False) -> str:
    """Text of the card of a model that says `about` of itself (see `describe`).

    samples: whether samples.png lies beside it.
    """
    sections = [_front(about), *_opening(about)]
    if samples:
        sections.append(f"![Pictures of this model, one prompt a row]({SAMPLES})")
    sections += ["## Use", _code(about)]
    if prompts := about.get("prompts"):
        sections += ["## Trained with", "\n".join(f"- `{prompt}`" for prompt in prompts)]
    if recipe := about.get("recipe"):
        lines = [f"| `{key}` | {_plain(value)} |" for key, value in recipe.items()]
        sections += ["## Recipe", "\n".join(["| | |", "|---|---|", *lines])]
    if metrics := about.get("metrics"):
        sections += ["## Measured", "\n".join(_numbers(metrics, about.get("base_metrics", {})))]
    return "\n\n".join([*sections, "## Licence", _licence(about)]) + "\n"


def _front(about: Mapping[str, Any]) -> str:
    base = str(about.get("base", ""))
    told: dict[str, Any] = {"license": about.get("licence") or _NO_LICENCE}
    if told["license"] == _NO_LICENCE:
        told["license_name"] = "see-the-base-model"
    if is_hub_id(base) and not Path(base).exists():
        told["base_model"] = base
    told |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if prompts := about.get("prompts"):
        told["instance_prompt"] = prompts[0]
    told["tags"] = ["text-to-image", "diffusers", "stable-diffusion", "dreambooth"]
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---"


def _opening(about: Mapping[str, Any]) -> Iterator[str]:
    if "identifier" not in about:
        yield "# A Stable Diffusion model"
        yield "Converted; nothing was trained."
        return
    yield f"# `{about['identifier']} {about['class_noun']}`"
    yield (
        f"In prompts the word `{about['identifier']}` names one {about['class_noun']}, learnt from "
        f"{len(about.get('pictures', {}))} pictures in {about['step']} steps by DreamBooth "
        f"(arXiv 2208.12242) from the base `{about['base']}`."
    )
    if ranks := about.get("timestep_rank"):
        yield (
            f"Trained with {ranks[0]} of the adapter's {ranks[1]} components at the noisiest "
            "timestep, with all at the last (T-LoRA, arXiv 2507.05964). Merged weights cannot keep "
            "that: these draw with the whole rank at all timesteps, and what was measured is the "
            "run, which keeps it."
        )


def _code(about: Mapping[str, Any]) -> str:
    prompt = next(iter(about.get("prompts", [])), "a photo of a dog")
    return (
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER OR ITS HUB ID")\n'
        f"pipeline({prompt!r}).images[0].save('picture.png')\n```"
    )


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbers(metrics: Mapping[str, Score], base: Mapping[str, Score]) -> Iterator[str]:
    yield "With 95 % intervals, beside the untouched base:"
    yield ""
    yield "| | this model | base | better |"
    yield "|---|---|---|---|"
    for metric in in_order(set(metrics)):
        about = term(metric)
        cells = (_cell(scores.get(metric), about.share) for scores in (metrics, base))
        yield f"| {about.group}: {about.name} | {' | '.join(cells)} | {about.better} |"


def _cell(score: Score | None, share: bool) -> str:
    if score is None:
        return ""
    value, span = figure(score["value"], share), interval(score["low"], score["high"], share)
    return f"{value} ({span})"


def _licence(about: Mapping[str, Any]) -> str:
    if licence := about.get("licence"):
        return f"That of the base, `{about.get('base')}`: {licence}."
    return f"That of the base, `{about.get('base')}`; which it is was not known here: see there."
