"""What grows with the number of pictures, with their size, and with a save.

    python -m bench.speed.growing WHAT ARGUMENT ...

`encode BASE FOLDER COUNT`, `draw BASE COUNT` and `decode FILE SIDE` each print one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.speed.contenders import NEVER, Place, train
from bench.speed.measure import Numbers, run, step_times


def class_folder(place: Place, count: int) -> Path:
    """So many class pictures, each of another colour."""
    from PIL import Image

    folder = place.folder / f"{count}_class_pictures"
    if not folder.is_dir():
        folder.mkdir()
        for number in range(count):
            colour = (number % 256, number // 256 % 256, 100)
            Image.new("RGB", (64, 64), colour).save(folder / f"{number:05d}.png")
    return folder


def anonymous_gib(output: str) -> float:
    """Of what a watched command said."""
    return int(output.splitlines()[-1]) / 2**20


def with_class_pictures(place: Place, count: int) -> Numbers:
    """Training with so many class pictures, all cached: seconds to the first step, and the most
    memory that no file is mapped into."""
    words = [f"prior.folder={class_folder(place, count)}"]
    started, folder = train(place, *words, steps=1)
    seconds = step_times(folder)[0] - started.began  # now: the next run takes the folder's place
    watched, _ = train(place, *words, watched=True)
    return {"seconds": seconds, "anonymous_gib": anonymous_gib(watched.output)}


def with_saves(place: Place, every: int = NEVER) -> Numbers:
    """The most memory of training that saves resume state and snapshot every so many steps."""
    words = [f"training.save_every={every}", f"snapshots.every={every}"]
    watched, _ = train(place, *words, steps=24, watched=True)
    return {"anonymous_gib": anonymous_gib(watched.output)}


def of_its_own(*words: object) -> Numbers:
    """What a task of this file prints, run in a process of its own."""
    command = [sys.executable, "-m", "bench.speed.growing", *map(str, words)]
    told: dict[str, float] = json.loads(run(command).output.splitlines()[-1])
    return told


def encode(base: str, folder: str, count: str) -> Numbers:
    """Seconds a picture of encoding, without a cache."""
    from ldm.data.latents import Transform, encode_pictures
    from ldm.models.base import load_base

    model, pictures = load_base(base), sorted(Path(folder).iterdir())[: int(count)]
    encode_pictures(model.vae, "", pictures[:8], Transform(64))
    began = time.perf_counter()
    encode_pictures(model.vae, "", pictures, Transform(64))
    return {"seconds": (time.perf_counter() - began) / len(pictures)}


def draw(base: str, count: str) -> Numbers:
    """Seconds a picture of sampling, 8 at a time, 10 steps."""
    from ldm.models.base import load_base
    from ldm.sampling.generate import generate

    model = load_base(base)

    def drawn(number: int) -> float:
        began = time.perf_counter()
        prompts, seeds = ["a drawing of a robot"] * number, range(number)
        for _ in generate(model, prompts, seeds, steps=10, scale=5.0, sampler="dpmpp_2m", batch=8):
            pass
        return (time.perf_counter() - began) / number

    drawn(8)
    return {"seconds": drawn(int(count))}


def decode(file: str, side: str) -> Numbers:
    """The most memory that reading a picture for `side` pixels took, and that of all its pixels."""
    import resource

    from ldm.data.images import crop_box, load_with_size, resize_box

    def most() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before, size = most(), (int(side), int(side))
    picture, (width, height) = load_with_size(file, short_side=int(side))
    resize_box(picture, crop_box(picture.size, "center"), size, mirror=False)
    pixels = 4 * width * height  # bytes: Pillow holds RGB as four each
    return {"gib": (most() - before) / 2**20, "pixels_gib": pixels / 2**30}


def photograph(place: Place, ending: str) -> Path:
    """48 megapixels, 8000 x 6000, soft and not of one colour."""
    from PIL import Image

    file = place.folder / f"photograph{ending}"
    if not file.is_file():
        Image.effect_noise((80, 60), 90).convert("RGB").resize((8000, 6000)).save(file)
    return file


def main() -> None:
    what, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[..., Numbers]] = {"encode": encode, "draw": draw, "decode": decode}
    print(json.dumps(tasks[what](*arguments)))


if __name__ == "__main__":
    main()
