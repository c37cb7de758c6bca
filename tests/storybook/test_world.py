"""The storybook world: pictures, captions, the held-out split and subjects."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm.storybook import (
    ACCESSORIES,
    COLOURS,
    NOUNS,
    PATTERNS,
    SETTINGS,
    SUBJECTS,
    caption,
    compose,
    full_caption,
    held_out,
    heldout_scenes,
    random_design,
    random_scene,
    random_subject,
    render,
    training_scenes,
)
from ldm.storybook.accessories import MARKS
from ldm.storybook.drawings import DRAWINGS
from ldm.storybook.pen import CANVAS, Pen, distance
from ldm.storybook.subjects import PALETTE_DISTANCE


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pixels(scene) -> np.ndarray:
    return np.asarray(render(scene)).astype(int)


def test_the_same_scene_gives_the_same_picture():
    for seed in range(20):
        a, b = random_scene(generator(seed)), random_scene(generator(seed))
        assert a == b
        assert (pixels(a) == pixels(b)).all()


def test_pictures_are_small_rgb():
    picture = render(random_scene(generator()))
    assert picture.size == (64, 64)
    assert picture.mode == "RGB"


@pytest.mark.parametrize("noun", NOUNS)
def test_every_combination_renders_and_shows(noun):
    rng = generator(1)
    pairs = itertools.product(SETTINGS, ACCESSORIES)
    for (setting, accessory), pattern in zip(pairs, itertools.cycle(PATTERNS + PATTERNS[:1])):
        scene = random_scene(
            rng, noun, setting=setting, accessory=accessory, pattern=pattern, held_out=None
        )
        picture = pixels(scene)
        if accessory != "none":
            bare = pixels(replace(scene, accessory="none"))
            assert (np.abs(picture - bare).max(axis=2) > 60).sum() >= 15, scene
        if pattern != "plain":
            bare = pixels(replace(scene, pattern="plain"))
            assert (np.abs(picture - bare).max(axis=2) > 20).sum() >= 15, scene


@pytest.mark.parametrize("noun", NOUNS)
def test_every_trait_changes_the_picture(noun):
    base = random_scene(generator(2), noun, "red", "in the snow", "none", "plain", held_out=None)
    for name, options in DRAWINGS[noun].TRAITS.items():
        drawn = set()
        for option in options:
            traits = {**base.design.traits, "accent": "none", name: option}
            if name == "accent":  # show every part that an accent may colour
                bare = {
                    "robot": ("base", "legs"),
                    "cup": ("saucer", "plate"),
                    "tree": ("ground", "mound"),
                }
                traits.update([bare.get(noun, ("accent", option))])
            drawn.add(render(replace(base, design=replace(base.design, traits=traits))).tobytes())
        assert len(drawn) == len(set(options)), (name, options)


def test_colours_are_far_apart_and_dominate():
    for a, b in itertools.combinations(COLOURS.values(), 2):
        assert distance(a, b) > 75
    rng = generator(3)
    for noun, (colour, rgb) in itertools.product(NOUNS, COLOURS.items()):
        scene = random_scene(rng, noun, colour, "under water", "none", "plain", held_out=None)
        plain = replace(scene.design, traits={**scene.design.traits, "accent": "none"})
        scene = replace(scene, scale=0.75, design=plain)
        picture = pixels(scene)
        near = (np.linalg.norm(picture - np.array(rgb), axis=2) < 40).sum()
        assert near > 0.05 * 64 * 64, (noun, colour)


def test_objects_are_visible_in_every_setting():
    rng = generator(4)
    for colour, setting in itertools.product(COLOURS, SETTINGS):
        scene = random_scene(rng, None, colour, setting, "none", "plain", held_out=None)
        empty = pixels(replace(scene, scale=0.01, x=5.0, y=5.0))
        changed = np.abs(pixels(scene) - empty).max(axis=2) > 40
        assert changed.mean() > 0.08, scene


def test_objects_stay_inside_the_picture():
    rng = generator(5)
    for _ in range(300):
        scene = random_scene(rng)
        assert 0.5 <= scene.scale <= 0.9
        assert abs(scene.tilt) <= 12
        assert 0.3 < scene.x < 0.7
        assert scene.noun == "fish" or scene.y + scene.scale / 2 < 1.0


def test_pen_maps_the_unit_box():
    image = Image.new("RGB", (CANVAS, CANVAS))
    plain = Pen(image, (0.5, 0.5, 1.0, 0.0, False), (0, 0, 0))
    assert np.allclose(plain.place([(-1, -1), (1, 1)]), [(0, 0), (CANVAS, CANVAS)])
    mirrored = Pen(image, (0.5, 0.5, 1.0, 0.0, True), (0, 0, 0))
    assert np.allclose(mirrored.place([(1, 0)]), [(0, CANVAS / 2)])
    turned = Pen(image, (0.5, 0.5, 0.5, 90.0, False), (0, 0, 0))
    assert np.allclose(turned.place([(1, 0)]), [(CANVAS / 2, CANVAS * 0.75)])


def test_articles():
    assert compose("cat", "orange") == "a drawing of an orange cat"
    assert compose("cat", "orange", pattern="striped") == "a drawing of a striped orange cat"
    assert compose("dog", medium=False) == "a dog"
    words = compose("dog", "red", "on the beach", "striped", "wearing a top hat")
    assert words == "a drawing of a striped red dog wearing a top hat on the beach"


def test_full_caption_names_everything_that_is_there():
    scene = random_scene(generator(), "dog", "red", "on the beach", "none", "plain", held_out=None)
    assert full_caption(scene) == "a drawing of a red dog on the beach"


def _grammar() -> re.Pattern[str]:
    def choice(words):
        return "(?:" + "|".join(map(re.escape, words)) + ")"

    return re.compile(
        rf"(?:a drawing of )?an? (?:{choice(PATTERNS[1:])} )?(?:{choice(COLOURS)} )?"
        rf"{choice(NOUNS)}(?: {choice(ACCESSORIES[1:])})?(?: {choice(SETTINGS)})?"
    )


def test_captions_follow_the_grammar_and_never_name_the_design():
    """The grammar holds no word for a design's parts, so a full match proves their absence."""
    rng, grammar = generator(6), _grammar()
    seen: set[object] = set()
    for _ in range(3000):
        scene = random_scene(rng)
        text = caption(scene, rng)
        assert grammar.fullmatch(text), text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        for kind, value in (("pattern", scene.pattern), ("accessory", scene.accessory)):
            named = [w for w in (*PATTERNS[1:], *ACCESSORIES[1:]) if w in text]
            assert all(word in (scene.pattern, scene.accessory) for word in named), text
            seen.add((kind, value in text))
        seen.add(("colour", scene.colour in text))
        seen.add(("setting", scene.setting in text))
        seen.add(text if text == f"a {scene.noun}" else "")
    assert seen >= {(kind, flag) for kind in ("colour", "setting") for flag in (True, False)}
    assert {"a dog", "a cat", "a robot", "a tree"} <= seen


def test_shares_of_patterns_and_accessories():
    rng = generator(7)
    scenes = [random_scene(rng) for _ in range(3000)]
    assert np.mean([s.pattern == "plain" for s in scenes]) == pytest.approx(0.7, abs=0.03)
    assert np.mean([s.accessory == "none" for s in scenes]) == pytest.approx(0.45, abs=0.03)
    worn = [s for s in scenes if s.accessory != "none"]
    named = np.mean([s.accessory in caption(s, rng) for s in worn])
    assert 0.68 < named < 0.85


def test_held_out_split():
    triples = list(itertools.product(NOUNS, COLOURS, SETTINGS))
    kept_out = {triple for triple in triples if held_out(*triple)}
    assert 0.08 < len(kept_out) / len(triples) < 0.12
    for position, options in enumerate((NOUNS, COLOURS, SETTINGS)):
        assert {triple[position] for triple in kept_out} == set(options)
    rng = generator(8)
    for _ in range(1000):
        scene = random_scene(rng)
        assert (scene.noun, scene.colour, scene.setting) not in kept_out
        scene = random_scene(rng, held_out=True)
        assert (scene.noun, scene.colour, scene.setting) in kept_out
    noun, colour, setting = sorted(kept_out)[0]
    assert random_scene(rng, noun, colour, setting, held_out=None).colour == colour
    with pytest.raises(ValueError, match="held_out"):
        random_scene(rng, noun, colour, setting)


def test_given_parts_are_kept():
    rng = generator(9)
    design = random_design("fish", rng)
    scene = random_scene(rng, design=design, setting="at night", accessory="wearing a crown")
    assert (scene.noun, scene.design, scene.setting) == ("fish", design, "at night")
    assert scene.accessory == "wearing a crown"


def _subjects():
    rng = generator(10)
    return [*SUBJECTS.values(), *(random_subject(rng) for _ in range(30))]


def test_subjects_are_outside_the_world():
    assert len(SUBJECTS) == 14
    assert len({subject.noun for subject in SUBJECTS.values()}) >= 6
    for subject in _subjects():
        assert subject.mark in MARKS
        assert distance(subject.body, subject.second) > 100
        for known in COLOURS.values():
            assert distance(subject.body, known) >= PALETTE_DISTANCE, subject
            assert distance(subject.second, known) >= PALETTE_DISTANCE, subject


def test_subject_marks_are_large():
    for subject in _subjects():
        scene = replace(training_scenes(subject)[0][0], tilt=0.0)
        marked = np.abs(pixels(scene) - pixels(replace(scene, mark=None))).max(axis=2) > 30
        columns = np.flatnonzero(marked.any(axis=0))
        assert columns[-1] - columns[0] + 1 >= 0.12 * scene.scale * 64, subject


def test_subject_pictures():
    for subject in SUBJECTS.values():
        training, heldout = training_scenes(subject), heldout_scenes(subject)
        assert (len(training), len(heldout)) == (5, 20)
        assert training == training_scenes(subject)
        assert heldout == heldout_scenes(subject)
        places = {scene.setting for scene, _ in training}
        assert len(places) == 5
        assert not places & {scene.setting for scene, _ in heldout}
        assert {scene.accessory for scene, _ in training} == {"none"}
        assert {scene.accessory for scene, _ in heldout} == set(ACCESSORIES)
        for scene, text in training:
            assert text == f"a drawing of [V] {subject.noun} {scene.setting}"
        assert len({render(scene).tobytes() for scene, _ in training + heldout}) == 25
