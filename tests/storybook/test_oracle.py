"""The shipped oracle on pictures it has never seen, and what it is taught with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.storybook import (
    ACCESSORIES,
    NOUNS,
    SETTINGS,
    SUBJECTS,
    heldout_scenes,
    random_design,
    render,
)
from ldm.storybook.oracle import WIDE, StorybookOracle, load_oracle, packed, unpacked
from ldm.storybook.pretraining.lessons import (
    FAMILY,
    SIZES,
    TRAITS,
    UNKNOWN,
    VIEWS,
    crossed,
    draw_lesson,
)
from ldm.storybook.pretraining.oracle import (
    REFUSED,
    SPOILER_NAMES,
    TEMPERATURE,
    Details,
    contrast,
    settle_none,
    spoil,
)
from ldm.storybook.pretraining.score import score_oracle, score_pairs
from ldm.storybook.pretraining.vae import to_unit


@pytest.fixture(scope="module")
def oracle() -> StorybookOracle:
    return load_oracle()


def test_reads_fresh_renders_and_refuses_spoilt_ones(oracle: StorybookOracle) -> None:
    scores = score_oracle(oracle, renders=600, pairs=30, seed=77_000)
    for attribute in ("class", "colour", "setting", "accessory"):
        assert scores[attribute]["value"] >= 0.98, attribute
    assert scores["renders taken for none of these"]["value"] <= 0.02
    caught = [scores[f"caught: {name}"]["value"] for name in SPOILER_NAMES]
    assert np.mean(caught) >= 0.95


def test_tells_designs_of_one_class_apart(oracle: StorybookOracle) -> None:
    told = score_pairs(oracle, pairs=180, seed=78_000)
    assert told["pairs of designs told apart"]["value"] >= 0.84


@pytest.mark.xfail(strict=True, reason="the shipped oracle reaches 90 %; see scores.json")
def test_tells_nearly_all_designs_apart(oracle: StorybookOracle) -> None:
    told = score_pairs(oracle, pairs=180, seed=78_000)
    assert told["pairs of designs told apart"]["value"] >= 0.95


def test_shipped_subjects_are_known_again(oracle: StorybookOracle) -> None:
    pictures = [render(scene) for s in SUBJECTS.values() for scene, _ in heldout_scenes(s)[::5]]
    embedding = np.stack([r.embedding for r in oracle.read(pictures)])
    cosines = (embedding @ embedding.T).reshape(len(SUBJECTS), 4, len(SUBJECTS), 4).mean((1, 3))
    assert (cosines.argmax(1) == np.arange(len(SUBJECTS))).all()


def test_size_on_disk() -> None:
    assert Path("data/storybook-oracle/oracle.safetensors").stat().st_size <= 2 * 2**20


def test_packed_weights_come_back_to_within_half_a_step() -> None:
    state = StorybookOracle(channels=(4, 6), features=8, embedding=4).state_dict()
    state["mix.weight"][3] = 0.0  # a row without a scale
    back = unpacked(packed(state))
    assert back.keys() == state.keys()
    for name, weight in state.items():
        if name in WIDE:
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((back[name] - weight).abs() <= 0.5001 * step).all()
        else:
            torch.testing.assert_close(back[name].to(weight), weight, rtol=1e-3, atol=1e-3)


def test_missing_oracle_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no oracle\.safetensors.*evaluation\.oracle=null"):
        StorybookOracle.load(tmp_path)


def test_questions_about_the_subject_split_into_equal_halves(oracle: StorybookOracle) -> None:
    questions = oracle.questions("sks", "robot")
    subject = [q for q in questions if q.about == "subject"]
    assert len({q.prompt for q in subject}) == 12
    assert all("sks robot" in q.prompt and q.expected["class"] == "robot" for q in subject)
    worn = [q.expected["accessory"] for q in subject if "accessory" in q.expected]
    assert worn == list(ACCESSORIES[1:])
    assert {q.expected["setting"] for q in subject if "setting" in q.expected} <= set(SETTINGS)
    assert sum(q.prompt == "a drawing of sks robot" for q in subject) == 1
    for half in (subject[::2], subject[1::2]):
        assert sum("setting" in q.expected for q in half) == 3
        assert sum("accessory" in q.expected for q in half) in (2, 3)


def test_questions_about_the_class_and_other_things(oracle: StorybookOracle) -> None:
    questions = oracle.questions("sks", "robot")
    assert [(q.prompt, q.expected) for q in questions if q.about == "class"] == [
        ("a drawing of a robot", {"class": "robot"})
    ]
    unrelated = [q for q in questions if q.about == "unrelated"]
    assert sorted(q.expected["class"] for q in unrelated) == sorted(
        noun for noun in NOUNS if noun != "robot" for _ in range(2)
    )
    for q in unrelated:
        assert "robot" not in q.prompt and "sks" not in q.prompt
        assert all(word in q.prompt for word in q.expected.values())
    assert sum("setting" in q.expected and "colour" in q.expected for q in unrelated) == 7


def test_a_class_that_the_world_lacks_is_not_checked(oracle: StorybookOracle) -> None:
    questions = oracle.questions("sks", "spaceship")
    assert [q.expected for q in questions if q.about == "class"] == [{}]
    assert not any("class" in q.expected for q in questions if q.about == "subject")
    assert {q.expected["class"] for q in questions if q.about == "unrelated"} == set(NOUNS)


def test_a_lesson_shows_each_thing_several_times() -> None:
    lesson = draw_lesson(4, seed=1)
    assert lesson.pictures.shape == (4 * FAMILY * VIEWS, 64, 64, 3)
    assert np.bincount(lesson.identity).tolist() == [VIEWS] * (4 * FAMILY)
    nouns = lesson.labels["class"].reshape(4, FAMILY * VIEWS)
    assert (nouns == nouns[:, :1]).all()  # a family is of one class
    things = lesson.traits.reshape(4 * FAMILY, VIEWS, -1)
    assert (things == things[:, :1]).all()  # a thing's design is the same in every view
    for row, noun in zip(lesson.traits, lesson.labels["class"], strict=True):
        known = [of for (of, *_), label in zip(TRAITS, row, strict=True) if label != UNKNOWN]
        assert known == [of for of, *_ in TRAITS if of == NOUNS[noun]]


def test_crossing_changes_as_many_traits_as_it_says() -> None:
    rng = np.random.default_rng(3)
    first, other = random_design("robot", rng), random_design("robot", rng)
    for count in (1, 2):
        design = crossed(first, other, count, rng)
        changed = [t for t in first.traits if design[t] != first[t]]
        assert len(changed) == count
        assert all(design[t] == other[t] for t in changed)
        assert design.sizes == other.sizes


def test_details_are_the_mean_over_what_is_known() -> None:
    """Against the formula, written out picture by picture."""
    torch.manual_seed(0)
    lesson, details = draw_lesson(2, seed=5), Details(6)
    rows = np.arange(0, len(lesson.pictures), 3)
    features = torch.randn(len(rows), 6)
    got = details.losses(features, lesson, rows)
    traits, sizes, marks = [], [], []
    for row, feature in zip(rows, features, strict=True):
        start, noun = 0, int(lesson.labels["class"][row])
        for k, (_, _, options) in enumerate(TRAITS):
            if (wanted := lesson.traits[row, k]) != UNKNOWN:
                logits = details.traits(feature)[start : start + len(options)]
                traits.append(-logits.log_softmax(0)[wanted].item())
            start += len(options)
        guess = details.sizes(feature)[noun * SIZES : (noun + 1) * SIZES]
        sizes.append((guess - torch.from_numpy(lesson.sizes[row])).square().mean().item())
        if lesson.marks[row] != UNKNOWN:
            marks.append(-details.mark(feature).log_softmax(0)[lesson.marks[row]].item())
    expected = {"traits": np.mean(traits), "sizes": np.mean(sizes), "mark": np.mean(marks)}
    assert {k: v.item() for k, v in got.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", range(len(SPOILER_NAMES)), ids=SPOILER_NAMES)
def test_spoiling_leaves_no_picture_as_it_was(kind: int) -> None:
    pictures = to_unit(draw_lesson(1, seed=2).pictures)
    spoilt = spoil(pictures, np.random.default_rng(0), kind)
    assert spoilt.shape == pictures.shape
    assert (spoilt - pictures).abs().mean((1, 2, 3)).min() > 0.02


def test_settling_refuses_few_good_pictures_and_changes_nothing_else() -> None:
    torch.manual_seed(0)
    oracle = StorybookOracle([4, 4, 4, 4], features=8).eval().requires_grad_(False)
    good = np.random.default_rng(0).integers(0, 256, (2000, 64, 64, 3), dtype=np.uint8)
    before = oracle(to_unit(good[:100]))
    settle_none(oracle, good)
    after = oracle(to_unit(good[:100]))
    refused = torch.cat([oracle(to_unit(part))["none"] > 0 for part in np.split(good, 4)])
    assert refused.float().mean().item() == pytest.approx(REFUSED, abs=0.001)
    assert (after["none"] - before["none"]).std() < 1e-5
    assert torch.equal(after["embedding"], before["embedding"])


def test_contrast_is_the_papers_formula() -> None:
    points = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    identity = torch.tensor([0, 0, 1, 1, 1, 2])
    terms = []
    for i in range(6):
        friends = [p for p in range(6) if p != i and identity[p] == identity[i]]
        if friends:
            alike = [float(torch.exp(points[i] @ points[a] / TEMPERATURE)) for a in range(6)]
            below = sum(alike) - alike[i]
            terms.append(-sum(math.log(alike[p] / below) for p in friends) / len(friends))
    assert contrast(points, identity).item() == pytest.approx(sum(terms) / len(terms))
