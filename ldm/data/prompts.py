"""Prompts: templates, captions, and the place of the identifier in them."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError

log = logging.getLogger(__name__)

PLACEHOLDER = "[V]"


def fill(template: str, identifier: str) -> str:
    """Put the identifier where `[V]` stands; without one (empty) the gap closes."""
    identifier = identifier.strip()
    if identifier:
        return template.replace(PLACEHOLDER, identifier)
    return " ".join(template.replace(PLACEHOLDER, " ").split())


def fill_all(template: str, identifiers: Sequence[str]) -> str:
    """Put each subject's identifier in its place: `[V]` or `[V1]`, `[V2]`, `[V3]` ...

    With one identifier this is `fill`. Raises UserError where the prompt names a subject that does
    not exist; ValueError for no identifiers.
    """
    if not identifiers:
        raise ValueError("at least one identifier, got none")
    words = [identifier.strip() for identifier in identifiers]

    def word(place: re.Match[str]) -> str:
        number = int(place[1] or 1)
        if not 1 <= number <= len(words):
            last = PLACEHOLDER if len(words) == 1 else f"[V{len(words)}]"
            raise UserError(
                f"prompt {template!r}: there is no {place[0]}, the number of subjects is "
                f"{len(words)}: write {last} at most, or add a subject to subjects"
            )
        return words[number - 1] or " "

    filled = re.sub(r"\[V([0-9]*)\]", word, template)
    return filled if all(words) else " ".join(filled.split())


def exchange_noun(text: str, noun: str, other: str) -> str:
    """The same prompt about another class: `noun` becomes `other`, and a/an before it follows.

    Whole words only, in either case; `other` is put in as it is written, in the plural where the
    noun stood in its regular one. Text without the noun comes back unchanged.

    >>> exchange_noun("a drawing of a robot among robots", "robot", "elephant")
    'a drawing of an elephant among elephants'
    """
    if not noun.strip():
        return text
    one, many = _words(noun), _words(_plural(noun))
    pattern = rf"(?<!\w)(?:(an?)(\s+))?(?:({one})|{many})(?!\w)"

    def exchanged(found: re.Match[str]) -> str:
        article, gap, singular = found.groups()
        word = other.strip() if singular else _plural(other)
        if article is None:
            return word
        vowel = re.match(r"(?!eu|uni)[aeiou]|hour", word, re.IGNORECASE)  # as it is spoken
        return f"{article[0]}{'n' if vowel else ''}{gap}{word}"

    return re.sub(pattern, exchanged, text, flags=re.IGNORECASE)


def names_subject(prompt: str, identifier: str) -> bool:
    """Whether `[V]`, or the identifier as a word of its own (in either case), is in the prompt."""
    return PLACEHOLDER in prompt or bool(identifier.strip() and _has_words(prompt, identifier))


def without_identifier(prompt: str, identifier: str) -> str:
    """The prompt without the word that names the subject; the class noun and the rest stay.

    `[V]`, `[V2]`, ... and the identifier as a word of its own, in either case; what is left keeps
    no gap, neither between words nor before a comma.

    >>> without_identifier("a sks dog, in the snow", "sks")
    'a dog, in the snow'
    """
    bare = re.sub(r"\[V[0-9]*\]", " ", prompt)
    if identifier.strip():
        bare = re.sub(rf"(?<!\w){_words(identifier)}(?!\w)", " ", bare, flags=re.IGNORECASE)
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(bare.split())).strip(" ,")


def caption_of(picture: Path) -> str | None:
    """The caption in `x.txt` beside the picture `x.png`, on one line, `[V]` unfilled.

    None where there is no such file or nothing in it. Raises UserError where it is not UTF-8 text.
    """
    path = picture.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"caption {path} cannot be read ({error}): save it as UTF-8 text or remove it"
        ) from error
    return " ".join(text.split()) or None


def prompts_of(
    pictures: Sequence[Path], templates: Sequence[str], identifier: str, captions: bool = True
) -> list[list[str]]:
    """For each picture the prompts to draw from: its caption if it has one, else all templates.

    The identifier is filled in. Warns, once, where a prompt would not name the subject.
    Raises UserError where a picture has neither a caption nor a template.
    """
    prompts = []
    nameless = []
    for picture in pictures:
        caption = caption_of(picture) if captions else None
        chosen = [caption] if caption is not None else list(templates)
        if not chosen:
            raise UserError(
                f"picture {picture} has no caption and there is no prompt template: "
                f"write {picture.with_suffix('.txt').name} beside it or set subject.prompt"
            )
        nameless += [prompt for prompt in chosen if not names_subject(prompt, identifier)]
        prompts.append([fill(prompt, identifier) for prompt in chosen])
    if nameless:
        listed = ", ".join(repr(prompt) for prompt in dict.fromkeys(nameless))
        log.warning("these prompts name no subject, put %s into them: %s", PLACEHOLDER, listed)
    return prompts


def _has_words(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){_words(words)}(?!\w)", text, re.IGNORECASE) is not None


def _words(text: str) -> str:
    """A pattern: these words, however far apart."""
    return r"\s+".join(re.escape(word) for word in text.split())


def _plural(noun: str) -> str:
    """The regular plural of an English noun."""
    noun = noun.strip()
    if re.search(r"[^aeiou]y$", noun, re.IGNORECASE):
        return f"{noun[:-1]}ies"
    return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", noun, re.IGNORECASE) else "s")
