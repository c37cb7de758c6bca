"""Jobs to pictures, each with all that it says of itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from ldm.models.base import BaseModel
from ldm.run.drawing.jobs import Job
from ldm.sampling.generate import batches, generate
from ldm.sampling.prompts.weights import parse


def draw(
    base: BaseModel,
    jobs: Sequence[Job],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    plain: bool = False,
    begin: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Make each picture, in order -> the picture and its settings, for `png_info`.

    settings: `generate`'s keyword arguments that are plain values; begin: the others. provenance:
    what is told beside these. plain: brackets in prompts are text. UserError, at once: settings
    impossible.
    """
    read = str if plain else parse
    prompts = [read(job.prompt) for job in jobs]
    told = {**settings, "negative": read(settings["negative"])}
    pictures = generate(base, prompts, [job.seed for job in jobs], **told, **(begin or {}))
    parts = batches(base, prompts, told["negative"], told["scale"], told["batch"])

    def drawn() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        for part in parts:
            together = jobs[part]
            for place, (job, picture) in enumerate(zip(together, pictures, strict=False)):
                own = {"prompt": job.prompt, "seed": job.seed}
                yield picture, {**own, **settings, **provenance, **_batch(together, place)}

    return drawn()


def _batch(together: Sequence[Job], place: int) -> dict[str, Any]:
    """Who was in a picture's batch, and where in it the picture is; nothing of one alone."""
    if len(together) == 1:
        return {}
    prompts, seeds = [job.prompt for job in together], [job.seed for job in together]
    return {"together": {"prompts": prompts, "seeds": seeds, "place": place}}
