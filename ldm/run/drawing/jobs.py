"""What is to be drawn: prompts and seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError

SEEDS = "give numbers and ranges, as 5 or 1-8,20"


@dataclass(frozen=True)
class Job:
    """One picture; prompt: as it is read, with everything filled in and chosen."""

    prompt: str
    seed: int


def seeds_of(text: str | None, count: int | None, usual: int = 4, first: int = 0) -> list[int]:
    """The seeds of --seed and --n: "5" with 3 is 5, 6, 7; "1-3,20" is all of them.

    Without a count there are `usual` many, without a text they count from `first`. UserError:
    neither number nor range, or a range beside a count.
    """
    if count is not None and count < 1:
        raise UserError(f"--n {count}: at least one picture per prompt")
    text = str(first) if text is None else text.strip()
    if text.isdecimal():
        return list(range(int(text), int(text) + (usual if count is None else count)))
    if count is not None:
        raise UserError(f"--n {count} beside --seed {text}: the seeds say how many pictures")
    seeds = [seed for part in text.split(",") for seed in _range_of(part.strip(), text)]
    return list(dict.fromkeys(seeds))


def _range_of(part: str, text: str) -> range:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if not found:
        raise UserError(f"--seed {text}: {part!r} is no seed, seeds count from 0; {SEEDS}")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first or last - first > 100_000:
        raise UserError(f"--seed {text}: {part!r} is no range of seeds; {SEEDS}")
    return range(first, last + 1)


def prompts_of(prompts: Sequence[str], file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file: a line each, empty ones skipped.

    UserError: the file cannot be read, or there is no prompt at all.
    """
    found = list(prompts)
    if file:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts-file {file} cannot be read ({error}); "
                "give a UTF-8 text file with one prompt per line"
            ) from error
        found += [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"--prompts-file {file} holds no prompt")
    return found
