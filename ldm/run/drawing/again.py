"""A picture that was drawn here, once more: what it says of itself, as options of the command line.

A picture's last bits depend on the batch that it was drawn in, so it tells who was in it.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.errors import UserError
from ldm.run.command import DTYPES
from ldm.run.device import device_of
from ldm.run.drawing.begin import check_files
from ldm.run.drawing.jobs import Job
from ldm.run.drawing.options import SAMPLING, SOURCE
from ldm.sampling.metadata import read_settings, versions

log = logging.getLogger(__name__)

MORE = ("width", "height", "strength", "hires", "hires_strength")


@dataclass(frozen=True)
class Recalled:
    """A picture's own story.

    options: by the names of the command line's. together: all of its batch, the picture itself at
    `place`. fingerprint: of the model. settings: everything that it says.
    """

    path: Path
    options: dict[str, Any]
    together: list[Job]
    place: int
    fingerprint: str | None
    settings: Mapping[str, Any]

    @property
    def job(self) -> Job:
        return self.together[self.place]

    def check_model(self, fingerprint: str, given: Collection[str]) -> None:
        """UserError where the model is not the one that drew it; a warning where one is given."""
        if self.fingerprint in (None, fingerprint):
            return
        told = f"{self.path} was drawn by {str(self.fingerprint)[:10]}, this model is"
        if {*given} & {*SOURCE}:  # asked for
            log.warning("%s %s: the picture will be another one", told, fingerprint[:10])
            return
        raise UserError(
            f"{told} {fingerprint[:10]}: it changed since; give --run or --model to draw with "
            "what is there now"
        )

    def tell_of_differences(self, device: torch.device, dtype: str) -> None:
        """Warn of all that may change the last bits: libraries, device, type, threads."""
        now = {"device": str(device), "dtype": dtype, "threads": threads_on(device)}
        pairs = {key: (self.settings.get(key), value) for key, value in now.items()}
        old = self.settings.get("versions", {})
        pairs |= {name: (old.get(name), new) for name, new in versions().items()}
        changed = [
            f"{name} {then}, now {value}"
            for name, (then, value) in pairs.items()
            if then is not None and then != value
        ]
        if changed:
            log.warning("pictures may differ from %s: %s", self.path, "; ".join(changed))


def threads_on(device: torch.device) -> int | None:
    """How many threads compute, where that decides the last bits of a picture."""
    return torch.get_num_threads() if device.type == "cpu" else None


def recall(path: Path, given: Collection[str] = ()) -> Recalled:
    """What a picture says; given: options that are not looked for.

    UserError: it says nothing, is a sheet of several, or its run is gone.
    """
    settings = read_settings(path)
    if "seed" not in settings:
        raise UserError(f"--from-png {path}: a sheet of several pictures; give one of these")
    options = {key: settings[key] for key in (*SAMPLING, *MORE) if settings.get(key) is not None}
    own = settings.get("options")
    options |= _of_older(settings) if own is None else own
    if not {"run", "model"} & {*given} and ("run" in options or "snapshot" in options):
        options["run"] = _find_run(path, options.get("run"), str(settings.get("model", "")))
    kept = {key: value for key, value in options.items() if key not in given}
    check_files(path, kept, settings)
    options |= kept
    if not _is_usable(options.get("device")):
        del options["device"]
    own_job = Job(str(settings["prompt"]), int(settings["seed"]))
    batch = settings.get("together")
    if not batch:
        together, place = [own_job], 0
    else:
        pairs = zip(batch["prompts"], batch["seeds"], strict=True)
        together, place = [Job(prompt, seed) for prompt, seed in pairs], int(batch["place"])
    return Recalled(path, options, together, place, settings.get("fingerprint"), settings)


def _is_usable(device: str | None) -> bool:
    """False of a device that this machine has not; what is drawn elsewhere is told of."""
    try:
        return device is None or bool(device_of(device))
    except UserError:
        return False


def _of_older(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a picture from before these were told, or of one that a run drew by itself."""
    options = {"plain": True, "quantize": settings.get("quantize"), "lora": settings.get("lora")}
    names = {f"torch.{name}": short for short, name in DTYPES.items()}
    options["dtype"] = names.get(str(settings.get("dtype")))
    options["device"] = settings.get("device")
    if settings.get("snapshot") is not None:
        options |= {"snapshot": str(settings["snapshot"]), "ema": bool(settings.get("ema"))}
    else:
        options["model"] = settings.get("model")
    return {key: value for key, value in options.items() if value is not None}


def _find_run(path: Path, told: str | None, model: str) -> Path:
    """Where the run is that drew a picture: where it was, or around the picture."""
    if told and (Path(told) / "config.yaml").is_file():
        return Path(told)
    name = Path(told).name if told else model.partition(" ")[0]
    for folder in path.resolve().parents:
        if folder.name == name and (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"--from-png {path}: the run that drew it, {told or name}, is gone; give --run FOLDER, "
        "where it is now, or another --model"
    )
