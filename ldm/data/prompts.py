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


def names_subject(prompt: str, identifier: str) -> bool:
    """Whether `[V]`, or the identifier as a word of its own (in either case), is in the prompt."""
    return PLACEHOLDER in prompt or bool(identifier.strip() and _has_words(prompt, identifier))


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
    pattern = r"\s+".join(re.escape(word) for word in words.split())
    return re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE) is not None
