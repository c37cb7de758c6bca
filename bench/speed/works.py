"""What is compared, and what each comparison has to give."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from bench.speed import contenders, growing
from bench.speed.contenders import Place
from bench.speed.measure import Numbers, in_turn, ratio_of

Tell = Callable[[str], None]
# Options that take less memory.
LEAN = ("training.optimizer=adafactor", "model.gradient_checkpointing=true")
LEANER = "Adafactor, checkpointing"


@dataclass(frozen=True)
class Row:
    """One comparison; ratio is peer / ours where more is better, ours / peer where less is."""

    work: str
    against: str
    ours: float
    peer: float
    unit: str
    ratio: float
    target: float | None
    at_least: bool  # the target is a least, else a most

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def _row(
    work: str,
    against: str,
    pair: tuple[Sequence[Numbers], Sequence[Numbers]],
    unit: str,
    target: float | None,
    at_least: bool,
    key: str = "seconds",
) -> Row:
    """pair: what the project and its peer gave, round by round."""
    ours, peer = pair
    ratio = ratio_of(peer, ours, key) if at_least else ratio_of(ours, peer, key)
    our, their = (statistics.median(one[key] for one in side) for side in pair)
    return Row(work, against, our, their, unit, ratio, target, at_least)


def training(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """A step of the full fine-tune with text encoder, 4 + 4 samples, fp32."""
    who: dict[str, Callable[[], Numbers]] = {
        "ours": lambda: contenders.ours(place),
        "bare": lambda: contenders.bare(place, "step", contenders.STEPS, 8, 64),
        "lean": lambda: contenders.ours(place, *LEAN),
    }
    if place.checkout:
        who["script"] = lambda: contenders.theirs(place)
    return _steps("training step, 64 px, 4 + 4, fp32", in_turn(who, rounds, tell), None)


def compiled(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """The bare step with the UNet's blocks compiled, beside as they are written."""
    found = [contenders.bare(place, "compiled", contenders.STEPS, 8, 64) for _ in range(rounds)]
    quick, written, ratio, compiling = (
        statistics.median(one[name] for one in found)
        for name in ("compiled", "written", "ratio", "compiling")
    )
    beside = "as written"
    return [
        Row("bare step, 64 px, 4 + 4, fp32, blocks compiled", beside, quick, written, "s", ratio,
            None, True),
        Row("first step, blocks compiled", beside, compiling + written, written, "s",
            (compiling + written) / written, None, False),
    ]  # fmt: skip


def formats(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """Bare calls with convolutions channels last, as they lie, beside contiguous."""
    found = [contenders.bare(place, "formats", contenders.STEPS, 8, 64) for _ in range(rounds)]
    rows = []
    for what, work in (("step", "bare step, 64 px, 4 + 4, fp32"), ("draw", "bare drawing of 8")):
        ours, peer, ratio = (
            statistics.median(one[f"{what}_{name}"] for one in found)
            for name in ("last", "contiguous", "ratio")
        )
        work = f"{work}, channels last"
        rows.append(Row(work, "contiguous", ours, peer, "s", ratio, None, True))
    return rows


def true_size(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """The same with Stable Diffusion 1.5's architecture at 256 pixels, 1 + 1; 17 GiB, 20 minutes.

    And the bare step with the VAE's encoder trained as well.
    """
    place, size = contenders.true_size(place), 256
    steps, warm = contenders.FEW
    words = ["training.batch=1", "prior.batch=1", f"data.resolution={size}"]
    options = ["--train_batch_size", "1", "--resolution", str(size)]
    numbers = ("step", steps, 2, size)
    who: dict[str, Callable[[], Numbers]] = {
        "ours": lambda: contenders.ours(place, *words, steps=steps, warm=warm),
        "bare": lambda: contenders.bare(place, *numbers),
        "lean": lambda: contenders.ours(place, *words, *LEAN, steps=steps, warm=warm),
        "vae": lambda: contenders.bare(place, *numbers, options=["--vae"]),
    }
    if place.checkout:
        who["script"] = lambda: contenders.theirs(place, *options, steps=steps, warm=warm)
    found = in_turn(who, rounds, tell)
    name = f"training step, Stable Diffusion 1.5, {size} px, 1 + 1, fp32"
    pair = (found["bare"], found["vae"])
    vae = _row("peak memory, bare step, VAE frozen, latents cached", "its encoder trained too",
               pair, "GiB", None, False, "peak_gib")  # fmt: skip
    return [*_steps(name, found, 1.5), vae]


def _steps(name: str, found: Mapping[str, Sequence[Numbers]], target: float | None) -> list[Row]:
    """Time and memory of a training step; target: times faster than diffusers' script."""
    bare, memory = (found["ours"], found["bare"]), f"peak memory, {name}"
    rows = [
        _row(name, "bare networks", bare, "s", 0.95, True),
        _row(memory, "bare networks", bare, "GiB", 1.05, False, "peak_gib"),
    ]
    if "script" in found:
        peer, script = "diffusers' script", (found["ours"], found["script"])
        rows += [
            _row(name, peer, script, "s", target, True),
            _row(memory, peer, script, "GiB", 0.7, False, "peak_gib"),
            _row(f"{memory}, {LEANER}", f"{peer}, AdamW", (found["lean"], found["script"]), "GiB",
                 0.7, False, "peak_gib"),
        ]  # fmt: skip
    return rows


def class_images(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """Class images: dpmpp_2m, 12 steps, 16 at a time, beside the base's own, 50 steps, 4."""
    settings, many, few = (16, 12), 192, 48  # batch and steps of configs/dreambooth.yaml
    who: dict[str, Callable[[], Numbers]] = {
        "ours": lambda: contenders.our_class_images(place, many),
        "bare": lambda: contenders.bare(place, "draw", many, *settings),
    }
    found = in_turn(who, rounds, tell)
    bare = (found["ours"], found["bare"])
    rows = [_row(f"{many} class images", "bare networks", bare, "s", 1.05, False)]
    if place.checkout:
        who = {
            "ours": lambda: contenders.our_class_images(place, few),
            "script": lambda: contenders.their_class_images(place, few),
        }
        found = in_turn(who, rounds, tell)
        script = (found["ours"], found["script"])
        rows.append(_row(f"{few} class images", "diffusers' script", script, "s", 4, True))
        for who_made, folder in (("ours", "our"), ("script", "their")):
            seen = contenders.oracle_says(place.folder / f"{folder}_class_images")
            tell(f"{who_made}: {seen['robots']:.0%} of {seen['n']:.0f} are robots by the oracle, "
                 f"{seen['nothing']:.0%} nothing known")  # fmt: skip
    return rows


def sampling(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """dpmpp_2m, 25 steps, guidance 5, 8 pictures at a time; one pass of guidance against two."""
    numbers = (3, 8, 25, 5.0)  # repetitions in a process, batch, steps, guidance scale
    who: dict[str, Callable[[], Numbers]] = {
        "ours": partial(contenders.bare, place, "ours", *numbers),
        "pipeline": partial(contenders.bare, place, "pipeline", *numbers),
    }
    found = in_turn(who, rounds, tell)
    passes = [contenders.bare(place, "one_pass", 20, 8) for _ in range(rounds)]
    one, two = (
        statistics.median(numbers[name] for numbers in passes) for name in ("one", "two")
    )  # seconds of a prediction
    ratio = statistics.median(numbers["ratio"] for numbers in passes)
    pair = (found["ours"], found["pipeline"])
    return [
        _row("8 pictures, 25 steps", "StableDiffusionPipeline", pair, "s", 1, True),
        Row("guidance in one pass, batch 8", "in two passes", one, two, "s", ratio, None, True),
    ]


def start(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """To the first step, with everything cached; --help and a mistake in the configuration."""
    contenders.first_step(place)  # fills the caches
    wrong = ["main.py", "--base", "configs/dreambooth.yaml", "training.step=1"]
    lines: dict[str, list[str]] = {
        "help": ["main.py", "--help"],
        "mistake": wrong,
        "torch": ["-c", "import torch"],
    }
    who: dict[str, Callable[[], Numbers]] = {
        name: partial(contenders.command_line, place, words) for name, words in lines.items()
    }
    who["first"] = lambda: contenders.first_step(place)
    who["bare"] = lambda: {"seconds": contenders.bare(place, "start")["whole"]}
    found = in_turn(who, rounds, tell)
    pairs = {name: (found[name], found["torch"]) for name in ("help", "mistake")}
    first = (found["first"], found["bare"])
    return [
        _row("command to first step", "imports and loading the base", first, "s", 1.3, False),
        _row("main.py --help", "import torch", pairs["help"], "s", 0.2, False),
        _row("a mistake in a key", "import torch", pairs["mistake"], "s", 0.2, False),
    ]


def growth(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """Steps after a save; memory and time as steps grow."""
    _, folder = contenders.train(place, "training.save_every=20", "snapshots.every=20", steps=120)
    seconds = contenders.column(folder, "seconds")
    peak = contenders.column(folder, "peak_memory_gib")
    after = statistics.median(seconds[place] for place in range(20, 120, 20))
    usual = statistics.median(seconds[WARM:])
    early, late = statistics.median(seconds[10:40]), statistics.median(seconds[90:])
    first, second = sum(seconds[:60]), sum(seconds[60:])
    return [
        Row("step after a save", "other steps", after, usual, "s", after / usual, 1.05, False),
        Row("steps 61 to 120, in all", "steps 1 to 60", second, first, "s", second / first, 1.05,
            False),
        Row("step 91 to 120", "step 11 to 40", late, early, "s", late / early, 1.05, False),
        Row("peak memory, step 120", "step 40", peak[-1], peak[39], "GiB", peak[-1] / peak[39],
            1.02, False),
    ]  # fmt: skip


def pictures(
    place: Place, rounds: int, tell: Tell, counts: tuple[int, int] = (10_000, 1_000)
) -> list[Row]:
    """Time and memory as class pictures grow in number: ten times as many, all cached."""
    for count in counts:  # fills the caches
        contenders.train(place, f"prior.folder={growing.class_folder(place, count)}", steps=1)
    found = in_turn(
        {f"{count}": partial(growing.with_class_pictures, place, count) for count in counts},
        rounds,
        tell,
    )
    many, few = (f"{count:,} class pictures" for count in counts)
    pair = (found[f"{counts[0]}"], found[f"{counts[1]}"])
    return [
        _row(f"peak memory, {many}", few, pair, "GiB", 1.02, False, "anonymous_gib"),
        _row(f"command to first step, {many}", few, pair, "s", 1.1, False),
    ]


def linear(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """Seconds a picture, of encoding and of sampling, four times as many beside few."""
    folder = growing.class_folder(place, 1_000)
    encode = partial(growing.of_its_own, "encode", place.base, folder)
    draw = partial(growing.of_its_own, "draw", place.base)
    who: dict[str, Callable[[], Numbers]] = {
        "encode 800": lambda: encode(800),
        "encode 200": lambda: encode(200),
        "draw 64": lambda: draw(64),
        "draw 16": lambda: draw(16),
    }
    found = in_turn(who, rounds, tell)
    encoded = (found["encode 800"], found["encode 200"])
    drawn = (found["draw 64"], found["draw 16"])
    return [
        _row("a picture encoded, of 800", "of 200", encoded, "s", 1.05, False),
        _row("a picture drawn, of 64", "of 16", drawn, "s", 1.05, False),
    ]


def memory(place: Place, rounds: int, tell: Tell) -> list[Row]:
    """The most memory of a save, and of a photograph of 48 megapixels that is read for 512 px."""
    found = in_turn(
        {
            "saves": lambda: growing.with_saves(place, 6),
            "none": lambda: growing.with_saves(place),
        },
        rounds,
        tell,
    )
    rows = [
        _row("peak memory, a save every 6 steps", "no save", (found["saves"], found["none"]),
             "GiB", 1.02, False, "anonymous_gib"),
    ]  # fmt: skip
    for ending, most in ((".jpg", 0.25), (".png", 1.25)):
        told = growing.of_its_own("decode", growing.photograph(place, ending), 512)
        work = f"memory to read 48 megapixels, {ending[1:].upper()}"
        ours, whole = told["gib"], told["pixels_gib"]
        rows.append(Row(work, "its pixels", ours, whole, "GiB", ours / whole, most, False))
    return rows


WARM = contenders.WARM
GROUPS: dict[str, Callable[[Place, int, Tell], list[Row]]] = {
    "training": training,
    "class_images": class_images,
    "sampling": sampling,
    "start": start,
    "growth": growth,
    "pictures": pictures,
    "linear": linear,
    "memory": memory,
    "compiled": compiled,
    "formats": formats,
    "true_size": true_size,
}
LONG = ("pictures", "compiled", "formats", "true_size")
USUAL = [name for name in GROUPS if name not in LONG]
