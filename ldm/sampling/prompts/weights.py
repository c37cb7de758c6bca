"""Weights of words in a prompt, and where a new section begins.

(word) counts 1.1 times, (word:1.3) 1.3 times, [word] 1 / 1.1 times, nested ones multiply; BREAK
begins a section. \\( \\) \\[ \\] \\\\ are the characters themselves. The syntax is A1111's:
https://github.com/AUTOMATIC1111/stable-diffusion-webui (modules/prompt_parser.py).
"""

import itertools
import re

from ldm.models.emphasis import Emphasised, Fragment, Prompt

ROUND, SQUARE = 1.1, 1 / 1.1
_PIECE = re.compile(
    r"""\\[()\[\]\\]                    # an escaped character
      | \(|\[                           # an opening bracket
      | :\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)   # a weight and its bracket's end
      | \)|\]                           # a closing bracket
      | [^\\()\[\]:]+ | .               # anything else""",
    re.VERBOSE | re.DOTALL,
)


def parse(text: str) -> Prompt:
    """What a text encoder is given: plain text where nothing has another weight than 1.

    Brackets that do not close hold to the end of the prompt; those that close nothing are text.
    """
    sections = [_merged(list(section)) for section in _sections(_weighted(text))]
    sections = [section for section in sections if section] or [[("", 1.0)]]
    if len(sections) == 1 and [weight for _, weight in sections[0]] == [1.0]:
        return sections[0][0][0]
    return Emphasised(tuple(tuple(section) for section in sections))


def _weighted(text: str) -> list[Fragment]:
    found: list[Fragment] = []
    round_open: list[int] = []  # where each bracket's content begins
    square_open: list[int] = []

    def multiply(start: int, factor: float) -> None:
        found[start:] = [(words, weight * factor) for words, weight in found[start:]]

    for piece in _PIECE.finditer(text):
        token, weight = piece[0], piece[1]
        if len(token) == 2 and token[0] == "\\":
            found.append((token[1], 1.0))
        elif token == "(":
            round_open.append(len(found))
        elif token == "[":
            square_open.append(len(found))
        elif weight is not None and round_open:
            multiply(round_open.pop(), float(weight))
        elif token == ")" and round_open:
            multiply(round_open.pop(), ROUND)
        elif token == "]" and square_open:
            multiply(square_open.pop(), SQUARE)
        else:
            found.append((token, 1.0))
    for start in round_open:
        multiply(start, ROUND)
    for start in square_open:
        multiply(start, SQUARE)
    return found


def _sections(found: list[Fragment]) -> list[list[Fragment]]:
    """Split at the word BREAK, which may stand in the middle of a piece."""
    sections: list[list[Fragment]] = [[]]
    for words, weight in found:
        first, *others = re.split(r"\s*\bBREAK\b\s*", words)
        sections[-1].append((first, weight))
        sections += [[(part, weight)] for part in others]
    return sections


def _merged(section: list[Fragment]) -> list[Fragment]:
    """Neighbours of one weight as one text, so that words are tokenised as they are written."""
    groups = itertools.groupby(section, key=lambda fragment: fragment[1])
    merged = [("".join(words for words, _ in group), weight) for weight, group in groups]
    return [fragment for fragment in merged if fragment[0]]
