"""Weights, choices and styles in prompts."""

from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.models.emphasis import Emphasised
from ldm.sampling.prompts.choices import Wildcards, chosen
from ldm.sampling.prompts.styles import Style, read_styles, style_of, with_style
from ldm.sampling.prompts.weights import parse


def fragments(text: str) -> list[tuple[str, float]]:
    """Of one section, weights to three digits."""
    read = parse(text)
    if isinstance(read, str):
        return [(read, 1.0)]
    (section,) = read.sections
    return [(words, round(weight, 3)) for words, weight in section]


@pytest.mark.parametrize(
    "text, expected",
    [  # the first ones are those in A1111's own docstring and wiki
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.464),
                (".", 1.1),
            ],
        ),
        ("((word))", [("word", 1.21)]),
        ("[word]", [("word", 0.909)]),
        ("(a: 0.25 ) b", [("a", 0.25), (" b", 1.0)]),
        ("(a:.5)(b:-1)", [("a", 0.5), ("b", -1.0)]),
        ("(a:1.0) b", [("a b", 1.0)]),
        ("time 3:15) and ] here", [("time 3:15) and ] here", 1.0)]),
        (r"a \\ b (c:d)", [("a \\ b ", 1.0), ("c:d", 1.1)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("BREAKFAST", [("BREAKFAST", 1.0)]),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert fragments(text) == expected


def test_break_begins_a_section() -> None:
    read = parse("a (dog BREAK in:1.5) snow BREAK BREAK")
    assert read == Emphasised(
        (((("a ", 1.0)), ("dog", 1.5)), (("in", 1.5), (" snow", 1.0))),
    )
    assert parse("BREAK a dog") == "a dog"


def test_choices_are_the_seeds(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "colour.txt").write_text("# mine\nred\n\n  __deep/blue__\n", "utf-8")
    (tmp_path / "deep" / "blue.txt").write_text("navy\nsky {blue|grey}\n", "utf-8")
    folder, text = Wildcards(tmp_path), "a {big|small} __colour__ {dog|{cat|fox}|}"
    made = [chosen(text, seed, folder) for seed in range(200)]
    assert made == [chosen(text, seed, folder) for seed in range(200)]
    words = set(" ".join(made).split())
    assert words == {
        *["a", "big", "small", "red", "navy", "sky", "blue", "grey", "dog", "cat", "fox"]
    }
    assert {one.split()[1] for one in made if "red" in one} == {"big", "small"}  # independent
    assert 60 < sum("big" in one for one in made) < 140
    assert chosen("a {dog} (in:1.2) [snow]", 0, Wildcards()) == "a {dog} (in:1.2) [snow]"


@pytest.mark.parametrize(
    "text, message",
    [
        ("__gone__", "gone.txt cannot be read"),
        ("__empty__", "empty.txt holds no choice"),
        ("__me__", "after 1000 choices"),
    ],
)
def test_choices_that_cannot_be_made(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "empty.txt").write_text("#\n\n")
    (tmp_path / "me.txt").write_text("a __me__")
    with pytest.raises(UserError, match=message):
        chosen(text, 0, Wildcards(tmp_path))
    with pytest.raises(UserError, match="--wildcards FOLDER"):
        chosen(text, 0, Wildcards())


def test_styles(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        '\ufeffname,prompt,negative_prompt\nink,"ink drawing of {prompt}, fine",photo\nold,,new\n'
    )
    (tmp_path / "a.yaml").write_text("ink: ink drawing\nold: {negative: new}\n")
    styles = read_styles(tmp_path / "a.csv")
    assert styles == {
        "ink": Style("ink drawing of {prompt}, fine", "photo"),
        "old": Style("", "new"),
    }
    assert read_styles(tmp_path / "a.yaml") == {
        "ink": Style("ink drawing"),
        "old": Style("", "new"),
    }
    assert with_style("a dog", styles["ink"].prompt) == "ink drawing of a dog, fine"
    assert with_style("a dog", "ink") == "a dog, ink"
    assert with_style("a dog", "") == "a dog" and with_style("", "ink") == "ink"
    with pytest.raises(UserError, match="--style neon: there is no such style; there are ink, old"):
        style_of(styles, "neon")
    for name, text in (("b.csv", "a,b\n1,2\n"), ("b.yaml", "- a"), ("c.yaml", "a: {text: b}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            read_styles(tmp_path / name)
    with pytest.raises(UserError, match=r"none.yaml cannot be read"):
        read_styles(tmp_path / "none.yaml")
