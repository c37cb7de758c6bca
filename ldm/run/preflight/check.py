"""All checks in turn, the cheap ones first, each said on the terminal as soon as it is there."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldm.config import Config, load_config
from ldm.data.images import find_pictures
from ldm.errors import UserError, explain_disk_errors
from ldm.models.base import BaseModel
from ldm.run.device import device_of, kind_of_device
from ldm.run.memory.prediction import free_bytes, training_memory
from ldm.run.memory.watermark import drawing_bytes
from ldm.run.preflight.clean import check_clean_folder, write_clean
from ldm.run.preflight.cost import Cost, cost_of
from ldm.run.preflight.pictures import Look, advice_on, look_at
from ldm.run.preflight.recommend import (
    MAIN_JOB,
    OVERLAYS,
    PHOTOGRAPHS,
    Numbers,
    recommended,
    write_recommended,
)
from ldm.run.preflight.sheet import contact_sheet
from ldm.run.preflight.words import Drawings, Word, rare_words, word_of
from ldm.run.prepare import Prepared, prepare
from ldm.run.trained import load_untouched
from ldm.run.transform import transform_of
from ldm.run.trouble import ROOT
from ldm.sampling.grid import labelled_grid
from ldm.training.display import clock

log = logging.getLogger(__name__)

ENOUGH_DRAWN = 0.5  # share of class pictures that must show the class


@dataclass(frozen=True)
class Wishes:
    """out: a folder for all that is written. clean: one for mended pictures, or None. suggest:
    measure rare words too. draw: pictures of the base, however long that takes; False: none; None:
    on bases of few pixels, and on GPUs."""

    out: Path
    clean: Path | None = None
    suggest: bool = False
    draw: bool | None = None


def preflight(files: list[Path], overrides: list[str], wishes: Wishes, console: Console) -> Config:
    """Check everything and write the sheets and `recommended.yaml`; the configuration it gives.

    UserError: training could not start.
    """
    if wishes.clean:
        check_clean_folder(wishes.clean)
    config, overlays, (side, multiple) = _configured(files, overrides)
    with explain_disk_errors(wishes.out):
        wishes.out.mkdir(parents=True, exist_ok=True)
    looks = _check_pictures(config, side, multiple, wishes, console)
    if wishes.clean:
        red, green, blue = ImageColor.getrgb(config.subject.background)[:3]
        _say(console, *write_clean(looks, wishes.clean, (red, green, blue)))
        config = dataclasses.replace(
            config, subject=dataclasses.replace(config.subject, pictures=str(wishes.clean))
        )
    elif broken := [look for look in looks if "unreadable" in look.concerns]:
        told = "\n".join(look.concerns["unreadable"] for look in broken)
        raise UserError(f"{told}\n--write CLEAN_FOLDER leaves it out and checks the rest")
    ready = prepare(config)
    drawings = _drawings(config, ready, wishes)
    _check_words(config, ready, drawings, wishes, console)
    need = training_memory(config, ready)
    numbers, fits = recommended(config, ready, looks, need.peak)
    path = wishes.out / "recommended.yaml"
    with explain_disk_errors(wishes.out):
        chosen = write_recommended(path, config, numbers, overlays)
    if _changes_networks(numbers):
        ready = prepare(chosen)
        need = training_memory(chosen, ready)
    drawn = drawings.seconds_per_step() if drawings and drawings.made else None
    _say_cost(console, cost_of(chosen, ready, need, drawn), fits, drawn is not None)
    console.rule("recommended", align="left")
    for key, (value, reason) in numbers.items():
        _say(console, f"{key} = {value}: {reason}")
    _say(console, f"python main.py --base configs/dreambooth.yaml {path}")
    return chosen


def _changes_networks(numbers: Numbers) -> bool:
    """Whether something is recommended that other networks, or other types, are made for."""
    usual = ("training.steps", "training.learning_rate", "training.batch", "prior.count")
    return any(key not in (*usual, "data.aspect") for key in numbers)


def _configured(
    files: list[Path], overrides: list[str]
) -> tuple[Config, list[str], tuple[int, int]]:
    """The configuration, with the overlay of the base's kind where none is given; the overlays;
    resolution, and what sides are multiples of."""
    config = load_config([MAIN_JOB, *files], overrides)
    base: BaseModel = load_untouched(config)
    own, multiple = base.default_resolution, base.multiple
    overlays = [str(file) for file in files]
    if not files and own >= PHOTOGRAPHS:
        overlays = [OVERLAYS[base.kind]]
        log.info("%s is of the kind that %s is for, which is taken", base.source, *overlays)
        keep = [*overrides, f"model.base={config.model.base}", f"data.resolution={own}"]
        config = load_config([MAIN_JOB, ROOT / overlays[0]], keep)
    return config, overlays, (config.data.resolution or own, multiple)


def _check_pictures(
    config: Config, side: int, multiple: int, wishes: Wishes, console: Console
) -> list[Look]:
    pictures = find_pictures(Path(config.subject.pictures))
    looks = look_at(pictures, transform_of(config, side, multiple))
    sheet = wishes.out / "pictures.png"
    _save(contact_sheet(looks), sheet)
    console.rule(f"pictures of {config.subject.pictures}, at {side} pixels", align="left")
    table = Table(box=None, pad_edge=False)
    for title in ("picture", "size", "trained in", "what is wrong"):
        table.add_column(title, overflow="fold")
    for look in looks:
        sizes = ("{} x {}".format(*size) if look.shown else "-" for size in (look.whole, look.size))
        told = escape("; ".join(look.concerns.values()))
        shown = f"[red]{told}[/red]" if look.is_dropped else f"[yellow]{told}[/yellow]"
        table.add_row(escape(look.path.name), *sizes, shown if told else "[green]fine[/green]")
    console.print(table)
    usable = sum(not look.is_dropped for look in looks)
    _say(console, f"{usable} of {len(looks)} are good to use; crops: {sheet}")
    _warn(console, advice_on(looks, config.data.aspect == "square"))
    dropped = len(looks) - usable
    if dropped and not wishes.clean:
        _say(console, f"--write CLEAN_FOLDER copies the pictures without those {dropped}, upright")
    return looks


def _drawings(config: Config, ready: Prepared, wishes: Wishes) -> Drawings | None:
    """None where drawing would take long, or is not wanted."""
    if wishes.draw is False:
        return None
    device = device_of(None if config.trainer.accelerator == "auto" else kind_of_device(config))
    if wishes.draw is None and device.type == "cpu" and ready.resolution >= PHOTOGRAPHS:
        log.warning("nothing is drawn on a CPU with a base of this size; --draw does, for long")
        return None
    free = free_bytes(device) if ready.resolution >= PHOTOGRAPHS else None  # small ones fit
    guided, batch = config.sampling.scale != 1, config.sampling.batch
    if free is not None and drawing_bytes(ready.base, ready.resolution, batch, guided) > free:
        log.warning("nothing is drawn: there is too little memory; sampling.batch=1 takes less")
        return None
    ready.base.to(device)
    return Drawings(config, ready)


def _check_words(
    config: Config,
    ready: Prepared,
    drawings: Drawings | None,
    wishes: Wishes,
    console: Console,
) -> None:
    subject, tokenizer = config.subject, ready.base.tokenizer
    noun, own = word_of(tokenizer, subject.class_noun), word_of(tokenizer, subject.identifier)
    others = rare_words(tokenizer) if wishes.suggest else []
    words = [own, *(word for word in others if word.word != own.word)]
    if drawings:
        for word in words:
            drawings.measure(word)
    console.rule(f"class noun: {subject.class_noun}", align="left")
    pieces = " + ".join(token.removesuffix("</w>") for token in noun.tokens)
    _say(console, f"{len(noun.tokens)} tokens ({pieces})")
    if drawings:
        strip = wishes.out / "class_noun.png"
        _save(labelled_grid([drawings.of(drawings.class_prompt)], [drawings.class_prompt]), strip)
        _say(console, f"what the base draws for it, to look at: {strip}")
        _warn(console, _noun_concerns(drawings, subject.class_noun))
    console.rule(f"identifier: {subject.identifier}", align="left")
    _say_words(console, words, drawings)
    _warn(console, [f"{own.word!r}: {concern}" for concern in own.concerns])
    if own.concerns and not wishes.suggest:
        _say(console, "--suggest finds better words")
    if drawings:
        strip = wishes.out / "identifiers.png"
        prompts = [drawings.class_prompt, *(drawings.prompt_with(word.word) for word in words)]
        _save(labelled_grid([drawings.of(prompt) for prompt in prompts], prompts, tile=96), strip)
        _say(console, f"the same seeds with each word: {strip}")


def _noun_concerns(drawings: Drawings, noun: str) -> list[str]:
    share = drawings.drawn_share()
    if drawings.oracle is None or (share is not None and share >= ENOUGH_DRAWN):
        return []
    if share is None:
        return [
            f"the oracle knows no {noun!r}, and so perhaps the base does not: look at the strip"
        ]
    return [f"only {share:.0%} of the pictures show a {noun}: take a noun that the base knows"]


def _say_words(console: Console, words: Sequence[Word], drawings: Drawings | None) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("word", "tokens", "frequency rank", "moves pictures", "variety", ""):
        table.add_column(title, overflow="fold")
    drawn = [word for word in words if word.moved is not None]
    for word in [
        words[0],
        *sorted(words[1:], key=lambda word: (len(word.concerns), word.moved or 0)),
    ]:
        rank = "-" if word.rank is None else f"{word.rank} of {word.merges}"
        shares = [
            f"{share:.0%}" if share is not None else "-" for share in (word.moved, word.varied)
        ]
        told = "[yellow]see below[/yellow]" if word is words[0] else "[yellow]not rare[/yellow]"
        told = told if word.concerns else "[green]good[/green]"
        table.add_row(escape(word.word), str(len(word.tokens)), rank, *shares, told)
    console.print(table)
    if drawn and drawings:
        _say(
            console,
            f"of the distance between two pictures of the class in {drawings.space}: how far the "
            "word moves pictures of the same seeds, and how far apart its own are",
        )


def _say_cost(console: Console, cost: Cost, fits: bool, measured: bool) -> None:
    console.rule("what it takes", align="left")
    if cost.total is None:
        _say(console, "time      not measured: a step does not fit the memory that is free now")
    else:
        drawn = "as measured" if measured else "estimated from the step"
        _say(
            console,
            f"time      about {clock(cost.total)}: training {clock(cost.training or 0)} "
            f"({cost.step:.2f} s a step, timed without the optimizer), "
            f"drawing {clock(cost.drawing or 0)} ({drawn})",
        )
    _say(console, *(f"memory    {line}" for line in cost.memory), f"disk      {cost.disk}")
    if not fits:
        _warn(console, ["no set of options is predicted to fit this device: take a smaller base"])


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _warn(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(f"[yellow]{escape(line)}[/yellow]", highlight=False, soft_wrap=True)


def _save(picture: Image.Image, path: Path) -> None:
    with explain_disk_errors(path):
        picture.save(path)
