"""Jobs to pictures, each with all that it says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ldm.models.base import BaseModel
from ldm.run.drawing.jobs import Job
from ldm.sampling.generate import generate


def draw(
    base: BaseModel, jobs: Sequence[Job], settings: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Make each picture, in order -> the picture and its settings, for `png_info`.

    settings: `generate`'s keyword arguments. provenance: what is told beside these. UserError, at
    once: settings impossible.
    """
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    pictures = generate(base, prompts, seeds, **settings)

    def told() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        for place, picture in enumerate(pictures):
            start = place - place % settings["batch"]
            together = jobs[start : start + settings["batch"]]
            own = {"prompt": jobs[place].prompt, "seed": jobs[place].seed}
            yield picture, {**own, **settings, **provenance, **_batch(together, place - start)}

    return told()


def _batch(together: Sequence[Job], place: int) -> dict[str, Any]:
    """Who was in a picture's batch, and where in it the picture is; nothing of one alone."""
    if len(together) == 1:
        return {}
    prompts, seeds = [job.prompt for job in together], [job.seed for job in together]
    return {"together": {"prompts": prompts, "seeds": seeds, "place": place}}
