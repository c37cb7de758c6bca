"""Templates, captions and the identifier's place."""

from pathlib import Path

import pytest

from ldm.data.prompts import (
    caption_of,
    fill,
    names_subject,
    prompts_of,
)
from ldm.errors import UserError


@pytest.mark.parametrize(
    ("template", "identifier", "expected"),
    [
        ("a drawing of [V] robot", "sks", "a drawing of sks robot"),
        ("[V] beside [V]", "ohwx", "ohwx beside ohwx"),
        ("a robot", "sks", "a robot"),
        ("a drawing of [V] robot", " sks ", "a drawing of sks robot"),
        ("a drawing of [V] robot", "", "a drawing of robot"),
        ("[v] [W] [V]", r"\1", r"[v] [W] \1"),  # nothing is a pattern here
    ],
)
def test_fill(template, identifier, expected):
    assert fill(template, identifier) == expected


@pytest.mark.parametrize(
    ("prompt", "identifier", "expected"),
    [
        ("a [V] robot", "sks", True),
        ("a sks robot", "sks", True),
        ("a SKS robot", "sks", True),
        ("a sksy robot", "sks", False),
        ("a robot", "sks", False),
        ("a robot", "", False),
        ("a sks robot", "s.s", False),
        ("my blue thing here", "blue  thing", True),
        ("a <s1> dog", "<s1>", True),
    ],
)
def test_names_subject(prompt, identifier, expected):
    assert names_subject(prompt, identifier) is expected


def test_caption_beside_picture(tmp_path):
    picture = tmp_path / "x.y.png"
    assert caption_of(picture) is None
    (tmp_path / "x.y.txt").write_bytes("\ufeffa drawing of [V] robot\r\n  at café \n".encode())
    assert caption_of(picture) == "a drawing of [V] robot at café"
    (tmp_path / "x.y.txt").write_text(" \n")
    assert caption_of(picture) is None
    (tmp_path / "x.y.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"x\.y\.txt .* UTF-8"):
        caption_of(picture)


def test_prompts_are_the_caption_or_all_templates(tmp_path):
    pictures = [tmp_path / "a.png", tmp_path / "b.jpg"]
    (tmp_path / "b.txt").write_text("[V] robot in the snow")
    templates = ["a [V] robot", "a drawing of [V] robot"]
    both = ["a sks robot", "a drawing of sks robot"]
    assert prompts_of(pictures, templates, "sks") == [both, ["sks robot in the snow"]]
    assert prompts_of(pictures, templates, "sks", captions=False) == [both, both]


def test_no_caption_and_no_template_is_an_error_that_names_both(tmp_path):
    with pytest.raises(UserError, match=r"a\.png .* a\.txt .* subject\.prompt"):
        prompts_of([tmp_path / "a.png"], [], "sks")


def test_prompt_without_subject_is_warned_about_once(caplog):
    pictures = [Path("a.png"), Path("b.png")]
    prompts_of(pictures, ["a sks robot", "a [V] robot"], "sks")
    assert not caplog.messages
    prompts_of(pictures, ["a robot", "a [V] robot"], "sks")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].count("'a robot'") == 1 and "[V]" in caplog.messages[0]
