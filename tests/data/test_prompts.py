"""Templates, captions and the identifier's place."""

from pathlib import Path

import pytest

from ldm.data.prompts import (
    caption_of,
    exchange_noun,
    fill,
    fill_all,
    names_subject,
    prompts_of,
    without_identifier,
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
    "template",
    ["a  [V] robot", "[V]", "a robot ", " [V][V]", "[v] [W] [V]x", "[V1 [V", "a[V]robot"],
)
@pytest.mark.parametrize("identifier", ["sks", " sks ", "", r"\1", "[V]"])
def test_fill_all_with_one_identifier_is_fill(template, identifier):
    assert fill_all(template, [identifier]) == fill(template, identifier)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("[V] dog beside [V2] robot", "sks dog beside ohwx robot"),
        ("[V3][V1] [V]", "zwxsks sks"),
        ("[v2] [V 2] [V-1] [W]", "[v2] [V 2] [V-1] [W]"),
    ],
)
def test_fill_all_with_several(template, expected):
    assert fill_all(template, ["sks", " ohwx ", "zwx"]) == expected


def test_an_empty_identifier_among_several_closes_the_gap():
    assert fill_all("a [V2] dog and [V] cat", ["sks", ""]) == "a dog and sks cat"


def test_a_subject_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"'a \[V5\] dog'.* no \[V5\].* is 2: write \[V2\]"):
        fill_all("a [V5] dog", ["sks", "ohwx"])
    with pytest.raises(UserError, match=r"no \[V2\].* is 1: write \[V\] at most"):
        fill_all("a [V2] dog", ["sks"])
    with pytest.raises(UserError, match=r"no \[V0\]"):
        fill_all("a [V0] dog", ["sks", "ohwx"])
    with pytest.raises(ValueError, match="identifier"):
        fill_all("a dog", [])


@pytest.mark.parametrize(
    ("text", "noun", "other", "expected"),
    [
        ("a drawing of a robot", "robot", "dog", "a drawing of a dog"),
        ("a drawing of a robot", "robot", "elephant", "a drawing of an elephant"),
        ("An apple and an  Apple", "apple", "dog", "A dog and a  dog"),
        ("A robot", "robot", "apple", "An apple"),
        ("a red robot", "robot", "apple", "a red apple"),  # the article is the adjective's
        ("banana robot", "robot", "apple", "banana apple"),  # no article
        (
            "robots, robotic, a robot-like robot's",
            "robot",
            "cat",
            "cats, robotic, a cat-like cat's",
        ),
        ("Foxes and puppies", "fox", "bus", "buses and puppies"),
        ("puppies with toys", "puppy", "toy", "toys with toys"),
        ("toys", "toy", "puppy", "puppies"),
        ("a toy   Robot", "toy robot", "old clock", "an old clock"),
        ("an animal", "animal", "unicorn", "a unicorn"),
        ("a dog", "dog", "umbrella", "an umbrella"),
        ("a c++ book", "c++", "[V]", "a [V] book"),
        ("a r.bot", "r.bot", r"\1", r"a \1"),
        ("a rxbot", "r.bot", "dog", "a rxbot"),
        ("a photo", "robot", "dog", "a photo"),
        ("a photo, s", " ", "dog", "a photo, s"),
    ],
)
def test_exchange_noun(text, noun, other, expected):
    assert exchange_noun(text, noun, other) == expected


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


@pytest.mark.parametrize(
    ("prompt", "identifier", "expected"),
    [
        ("a drawing of sks robot in the snow", "sks", "a drawing of robot in the snow"),
        ("sks robot", "sks", "robot"),
        ("a robot like SKS", "sks", "a robot like"),
        ("a sks, sks2 and asks sks-robot sks.", "sks", "a, sks2 and asks -robot."),
        ("a drawing of [V] robot", "sks", "a drawing of robot"),
        ("[V2] beside [V] dog", "sks", "beside dog"),
        ("a toy  poodle  dog", "toy poodle", "a dog"),
        ("a robot, sks", "sks", "a robot"),
        ("a c++ robot and c", "c++", "a robot and c"),
        ("a robot", "", "a robot"),
    ],
)
def test_without_identifier(prompt, identifier, expected):
    assert without_identifier(prompt, identifier) == expected
