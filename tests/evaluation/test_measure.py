"""Every metric against a formula written out over the PNG files; what is kept and reused."""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation import measure as module
from ldm.evaluation import measured as measured_module
from ldm.evaluation.measure import Measurer, floor_of
from ldm.evaluation.measured import Measured, fidelity_of, read_measured
from ldm.evaluation.metrics import Score
from ldm.evaluation.oracle import Question, Reading
from ldm.evaluation.pictures import Asked, ask, ask_class_again, files_of
from tests.evaluation.fake import BrightnessOracle

SIDE = 24
QUESTIONS = [
    Question("subject", "a sks robot", {"light": "bright"}),
    Question("subject", "a sks robot at night", {"light": "dark"}),
    Question("subject", "a drawing of sks robot", {"light": "bright"}),
    Question("class", "a robot", {"light": "bright"}),
    Question("unrelated", "a dog", {"light": "dark"}),
    Question("unrelated", "a cat", {}),
]
ASKED = ask(QUESTIONS, 3, 20, 2, seed=5)


class Projection:
    """Random features of a picture shrunk to 4 x 4 pixels: tiny, and unlike another seed's."""

    def __init__(self, space: str, seed: int) -> None:
        self.space, self.name, self.seed = space, f"tiny-{seed}", seed
        self.looked = 0

    @property
    def weights(self) -> Tensor:
        return torch.randn(48, 8, generator=torch.Generator().manual_seed(self.seed))

    def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
        self.looked += len(pictures)
        small = [torch.nn.functional.adaptive_avg_pool2d(one, 4).flatten() for one in pictures]
        return torch.nn.functional.normalize(torch.stack(small) @ self.weights + 0.2, dim=1)


class WordProjection(Projection):
    """Reads text, too: a direction for each prompt."""

    def text(self, prompts: Sequence[str]) -> Tensor:
        seeds = [sum(prompt.encode()) for prompt in prompts]
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


class Difference:
    """Stands in for LPIPS: mean absolute difference of the pixels."""

    name = "lpips_none"

    def __call__(self, pictures: Tensor) -> np.ndarray:
        return (pictures[:, None] - pictures[None]).abs().mean((2, 3, 4)).double().numpy()


def picture(seed: int, light: float) -> Image.Image:
    noise = np.random.default_rng(seed).uniform(0, 2 * light, size=(SIDE, SIDE, 3))
    noise *= np.random.default_rng(seed + 1).uniform(0.5, 1, size=3)
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def put(folder: Path, asked: Sequence[Asked] = ASKED, salt: int = 0) -> Path:
    """A folder of pictures as `draw` leaves it; `salt`: of another model."""
    for place, name in enumerate(files_of(asked)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        light = np.random.default_rng(1000 * salt + place).uniform(60, 200)
        picture(100 * salt + 3 * place, light).save(folder / name)
    content = {"asked": [asdict(one) for one in asked]}
    (folder / "pictures.json").write_text(json.dumps(content))
    return folder


TRAINING = [picture(9000 + 2 * k, 100 + 10 * k) for k in range(3)]
HELDOUT = [picture(9500 + 2 * k, 90 + 10 * k) for k in range(4)]


def measurer(**changes: Any) -> Measurer:
    parts: dict[str, Any] = {
        "oracle": BrightnessOracle(),
        "extractors": [Projection("dino", 1), WordProjection("clip", 2)],
        "lpips": Difference(),
    }
    heldout = changes.pop("heldout", HELDOUT)
    return Measurer("sks", changes.pop("training", TRAINING), heldout, **(parts | changes))


# --- formulas over files


class Formulas:
    """What the metrics are, with loops; features are made here from the files."""

    def __init__(self, folder: Path, space: str, asked: Sequence[Asked] = ASKED) -> None:
        self.space, self.asked = space, asked
        self.files = [Image.open(folder / name).convert("RGB") for name in files_of(asked)]
        self.rows = np.stack([self.feature(one) for one in self.files])

    def feature(self, image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image, np.float64)
        if self.space == "oracle":
            colour = pixels.mean((0, 1)) + 1e-6
            return colour / np.linalg.norm(colour)
        extractor = {"dino": Projection("dino", 1), "clip": WordProjection("clip", 2)}[self.space]
        small = (pixels / 127.5 - 1).reshape(4, SIDE // 4, 4, SIDE // 4, 3).mean((1, 3))
        found = small.transpose(2, 0, 1).reshape(-1) @ extractor.weights.double().numpy() + 0.2
        return found / np.linalg.norm(found)

    def places(self, about: str, half: str = "") -> list[int]:
        of_half = ("", half) if half else ("", "choosing", "reporting")
        return [i for i, a in enumerate(self.asked) if a.about == about and a.half in of_half]

    def similarity(self, about: str, half: str, own: Sequence[Image.Image]) -> float:
        own_rows = [self.feature(one) for one in own]
        return float(
            np.mean([self.rows[i] @ o for i in self.places(about, half) for o in own_rows])
        )

    def nearest(self, half: str) -> list[float]:
        training = [self.feature(one) for one in TRAINING]
        return [max(self.rows[i] @ t for t in training) for i in self.places("subject", half)]

    def normal(self) -> float:
        training = [self.feature(one) for one in TRAINING]
        return float(
            np.percentile([max(self.feature(h) @ t for t in training) for h in HELDOUT], 95)
        )

    def diversity(self, about: str, half: str) -> float:
        places = self.places(about, half)
        prompts = dict.fromkeys(self.asked[i].prompt for i in places)
        means = []
        for prompt in prompts:
            own = [i for i in places if self.asked[i].prompt == prompt]
            pairs = itertools.combinations(own, 2)
            means.append(np.mean([1 - self.rows[i] @ self.rows[j] for i, j in pairs]))
        return float(np.mean(means))

    def kid(self, about: str, base: "Formulas") -> float:
        def kernel(x: np.ndarray, y: np.ndarray) -> float:
            return float((x @ y / len(x) + 1) ** 3)

        mine, theirs = ([r.rows[i] for i in r.places(about)] for r in (self, base))

        def within(rows: list[np.ndarray]) -> float:
            pairs = itertools.permutations(rows, 2)
            return float(np.mean([kernel(x, y) for x, y in pairs]))

        between = np.mean([kernel(x, y) for x in mine for y in theirs])
        return within(mine) + within(theirs) - 2 * float(between)

    def light(self, i: int) -> str:
        return "bright" if np.asarray(self.files[i], float).mean() + 1e-6 > 127 else "dark"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("measured")
    return put(place / "base"), put(place / "trained", salt=1)


@pytest.fixture(scope="module")
def both(folders: tuple[Path, Path]) -> Iterator[tuple[Measured, Measured]]:
    own = measurer()
    base = own.measure(folders[0])
    losses = {"loss/subject": Score(value=0.1, low=0.0, high=0.2, n=4)}
    yield base, own.measure(folders[1], base, losses=lambda: losses)


def value(measured: Measured, metric: str, half: str) -> float:
    return measured.scores[half][metric]["value"]


@pytest.mark.parametrize("half", ["choosing", "reporting"])
@pytest.mark.parametrize("space", ["oracle", "dino", "clip"])
def test_features_against_formulas(
    folders: tuple[Path, Path], both: tuple[Measured, Measured], space: str, half: str
) -> None:
    _, trained = both
    old, new = (Formulas(folder, space) for folder in folders)
    near, normal = new.nearest(half), new.normal()
    drift = {
        about: float(np.mean([1 - new.rows[i] @ old.rows[i] for i in new.places(about)]))
        for about in ("class", "unrelated")
    }
    wanted = {
        f"subject/fidelity/{space}": new.similarity("subject", half, HELDOUT),
        f"class/pres/{space}": new.similarity("class", half, HELDOUT),
        f"subject/copying/{space}": float(np.mean(near)) - normal,
        f"subject/copied/{space}": float(np.mean([one > normal for one in near])),
        f"subject/diversity/{space}": new.diversity("subject", half),
        f"class/diversity/{space}": new.diversity("class", half),
        f"class/drift/{space}": drift["class"],
        f"unrelated/drift/{space}": drift["unrelated"],
        f"class/kid/{space}": new.kid("class", old),
        f"unrelated/kid/{space}": new.kid("unrelated", old),
    }
    found = {metric: value(trained, metric, half) for metric in wanted}
    assert found == pytest.approx(wanted, abs=1e-5)
    assert trained.scores[half][f"subject/fidelity/{space}"]["n"] == (6 if half[0] == "c" else 3)


@pytest.mark.parametrize("half", ["choosing", "reporting"])
def test_the_oracles_answers_against_counts(
    folders: tuple[Path, Path], both: tuple[Measured, Measured], half: str
) -> None:
    old, new = (Formulas(folder, "oracle") for folder in folders)
    centre = np.mean([new.feature(one) for one in HELDOUT], axis=0)
    centre /= np.linalg.norm(centre)

    def share(about: str, what: Any) -> float:
        return float(np.mean([what(i) for i in new.places(about, half)]))

    def right(i: int) -> bool:
        return new.light(i) == new.asked[i].expected["light"]

    shares = [Counter(r.light(i) for i in r.places("class")) for r in (old, new)]
    change = abs(shares[0]["dark"] - shares[1]["dark"]) / 20
    told = [i for i in new.places("unrelated") if new.asked[i].expected]
    wanted = {
        "subject/light": share("subject", right),
        "subject/prompt/oracle": share("subject", right),
        "class/light": share("class", right),
        "unrelated/light": float(np.mean([right(i) for i in told])),
        "class/change/light": change,
        **{
            f"{about}/identity": share(about, lambda i: new.rows[i] @ centre >= 0.999)
            for about in ("subject", "class", "unrelated")
        },
        **{f"{about}/none": 0.0 for about in ("subject", "class", "unrelated")},
    }
    found = {metric: value(both[1], metric, half) for metric in wanted}
    assert found == pytest.approx(wanted, abs=1e-9)
    assert 0 < change < 1 and 0 < wanted["class/identity"] < 1, "the test can fail"
    assert both[1].scores[half]["unrelated/light"]["n"] == 2
    none = both[1].scores[half]["class/none"]
    assert 0 < none["high"] < 0.2, "a share: none of 20 is not certainly none"


@pytest.mark.parametrize("half", ["choosing", "reporting"])
def test_clip_t_is_about_matched_pairs_without_the_identifier(
    folders: tuple[Path, Path], both: tuple[Measured, Measured], half: str
) -> None:
    new, reader = Formulas(folders[1], "clip"), WordProjection("clip", 2)
    said = {
        "a sks robot": "a robot",
        "a sks robot at night": "a robot at night",
        "a drawing of sks robot": "a drawing of robot",
    }
    cosines = [
        new.rows[i] @ reader.text([said[new.asked[i].prompt]])[0].double().numpy()
        for i in new.places("subject", half)
    ]
    assert value(both[1], "subject/prompt/clip", half) == pytest.approx(np.mean(cosines), abs=1e-5)


def test_lpips_of_the_pictures_of_one_prompt(
    folders: tuple[Path, Path], both: tuple[Measured, Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Formulas(folders[1], "dino")
    pixels = [np.asarray(one, float) / 127.5 - 1 for one in new.files]

    def mean_of(places: Sequence[int]) -> float:
        pairs = itertools.combinations(places, 2)
        return float(np.mean([np.abs(pixels[i] - pixels[j]).mean() for i, j in pairs]))

    of_class = new.places("class")[: module.LPIPS_PICTURES]
    assert len(of_class) == 16
    metric = "class/diversity/lpips_none"
    assert value(both[1], metric, "choosing") == pytest.approx(mean_of(of_class), abs=1e-6)
    places = new.places("subject", "choosing")
    wanted = (mean_of(places[:3]) + mean_of(places[3:])) / 2
    metric = "subject/diversity/lpips_none"
    assert value(both[1], metric, "choosing") == pytest.approx(wanted, abs=1e-6)


def test_ceiling_and_floor(folders: tuple[Path, Path], tmp_path: Path) -> None:
    own = measurer()
    base = own.measure(folders[0])
    again = put(tmp_path / "again", ask_class_again(QUESTIONS, 20, seed=5), salt=2)
    floor = floor_of(own.measure(again, base))
    assert floor.keys() == {
        "class/change/light",
        *(f"class/kid/{s}" for s in own.training.features),
    }
    old = Formulas(folders[0], "dino")
    new = Formulas(again, "dino", ask_class_again(QUESTIONS, 20, seed=5))
    assert floor["class/kid/dino"]["value"] == pytest.approx(new.kid("class", old), abs=1e-6)
    rows = [old.feature(one) for one in HELDOUT]
    wanted = np.mean([a @ b for a, b in itertools.combinations(rows, 2)])
    ceiling = own.ceiling()
    assert ceiling["subject/fidelity/dino"]["value"] == pytest.approx(wanted, abs=1e-5)
    assert measurer(heldout=[], training=TRAINING[:1]).ceiling() == {}


def test_words_of_what_is_none_of_the_world_are_wrong_and_a_word_of_their_own(
    tmp_path: Path,
) -> None:
    class Blind(BrightnessOracle):
        def read(self, pictures: Sequence[Image.Image]) -> list[Reading]:
            return [Reading({"light": "bright"}, True, r.embedding) for r in super().read(pictures)]

    sharp = measurer().measure(put(tmp_path / "base"))
    blind = measurer(oracle=Blind()).measure(put(tmp_path / "trained", salt=1), sharp)
    for metric, wanted in {
        "subject/light": 0.0,
        "subject/prompt/oracle": 0.0,
        "subject/none": 1.0,
        "class/change/light": 1.0,
    }.items():
        assert value(blind, metric, "choosing") == wanted, metric


# --- with less


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        ({"oracle": None}, ["oracle", "identity", "/none", "light"]),
        ({"extractors": []}, ["dino", "clip"]),
        ({"lpips": None}, ["lpips_none"]),
        ({"extractors": [Projection("clip", 2)]}, ["prompt/clip", "dino"]),
    ],
)
def test_what_cannot_be_measured_is_left_out(
    both: tuple[Measured, Measured], tmp_path: Path, absent: dict[str, Any], gone: list[str]
) -> None:
    own = measurer(**absent)
    base = own.measure(put(tmp_path / "base"))
    found = own.measure(put(tmp_path / "trained", salt=1), base)
    scores = both[1].scores["choosing"]
    wanted = {
        metric: score["value"]
        for metric, score in scores.items()
        if not metric.startswith("loss/") and not any(metric.endswith(end) for end in gone)
    }
    left = {metric: score["value"] for metric, score in found.scores["choosing"].items()}
    assert left.keys() == wanted.keys()
    assert left == pytest.approx(wanted), "and the rest is as it was"
    assert len(left) < len(scores) - 1


def test_the_base_alone_has_no_drift(both: tuple[Measured, Measured]) -> None:
    more = both[1].scores["choosing"].keys() - both[0].scores["choosing"].keys()
    assert {name.split("/")[1] for name in more} == {"drift", "kid", "change", "subject"}


def test_without_heldout_pictures_the_training_ones_are_compared_with(tmp_path: Path) -> None:
    own = measurer(heldout=[])
    assert own.compared_with == "training"
    found = own.measure(put(tmp_path))
    formulas = Formulas(tmp_path, "dino")
    wanted = formulas.similarity("subject", "choosing", TRAINING)
    assert value(found, "subject/fidelity/dino", "choosing") == pytest.approx(wanted, abs=1e-5)
    rows = [formulas.feature(one) for one in TRAINING]
    others = [max(a @ b for b in rows if b is not a) for a in rows]
    near = np.mean(formulas.nearest("choosing")) - np.percentile(others, 95)
    assert value(found, "subject/copying/dino", "choosing") == pytest.approx(near, abs=1e-5)


def test_a_single_picture_of_the_subject_says_nothing_of_copying(tmp_path: Path) -> None:
    found = measurer(heldout=[], training=TRAINING[:1]).measure(put(tmp_path))
    assert not [name for name in found.scores["choosing"] if "/cop" in name]


# --- what is kept


def test_what_was_measured_is_read_again(both: tuple[Measured, Measured]) -> None:
    for measured in both:
        assert read_measured(measured.folder) == measured
    with (both[1].folder / "pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ASKED)
    first = {key: rows[0][key] for key in ("file", "about", "half", "prompt", "asked/light")}
    assert [*first.values()] == ["subject/000.png", "subject", "choosing", "a sks robot", "bright"]
    assert int(rows[0]["seed"]) == ASKED[0].seed and rows[0]["read/light"] in ("bright", "dark")
    assert rows[0]["identity"] in ("0", "1") and float(rows[0]["fidelity/dino"]) != 0
    assert rows[-1]["fidelity/dino"] == "" and rows[-1]["drift/dino"] != ""


def test_means_of_the_rows_are_the_scores(both: tuple[Measured, Measured]) -> None:
    for metric, score in both[1].scores["reporting"].items():
        about, column = metric.split("/", 1)
        if column.split("/")[0] in ("diversity", "kid", "change") or about == "loss":
            continue
        rows = [r for r in both[1].rows if r["about"] == about and r["half"] in ("", "reporting")]
        values = [row[column] for row in rows if column in row]
        assert score["value"] == pytest.approx(np.mean(values)), metric


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    base_folder, folder = put(tmp_path / "base"), put(tmp_path / "trained", salt=1)

    def looked(own: Measurer, losses: Any = None) -> int:
        dino = own.extractors["dino"]
        assert isinstance(dino, Projection)
        dino.looked = 0
        own.measure(folder, own.measure(base_folder), losses=losses)
        return dino.looked

    once = len(ASKED)
    assert looked(measurer()) == 2 * once, "the base's features are kept"
    assert looked(measurer()) == 0
    loss = {"loss/class": Score(value=1.0, low=1.0, high=1.0, n=1)}
    assert looked(measurer(), lambda: loss) == 2 * once, "the base, read from files, once again"
    assert looked(measurer(), lambda: pytest.fail("known")) == 0
    assert looked(measurer()) == 0, "and more than is asked for does no harm"
    assert read_measured(folder).scores["reporting"]["loss/class"] == loss["loss/class"]
    another = [Projection("dino", 1), WordProjection("clip", 3)]
    assert looked(measurer(extractors=another)) == 2 * once
    assert looked(measurer(extractors=another, training=TRAINING[:2])) == 2 * once
    oracle = BrightnessOracle()
    oracle.rates = {"threshold": 0.99}
    changed = measurer(extractors=another, training=TRAINING[:2], oracle=oracle)
    assert looked(changed) == 2 * once
    picture(1, 50).save(base_folder / "class/0003.png")
    assert looked(changed) == 2 * once, "another base, so other drift"


def test_features_of_the_base_are_made_once(tmp_path: Path) -> None:
    own = measurer()
    own.measure(put(tmp_path / "base"))
    base = read_measured(tmp_path / "base")
    dino = own.extractors["dino"]
    assert isinstance(dino, Projection)
    dino.looked = 0
    for salt in (1, 2):
        own.measure(put(tmp_path / str(salt), salt=salt), base)
    assert dino.looked == 3 * len(ASKED)


@pytest.mark.parametrize("name", ["scores.json", "pictures.csv"])
def test_damaged_files_are_told_and_measured_anew(tmp_path: Path, name: str) -> None:
    measured = measurer().measure(put(tmp_path))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="missing or damaged"):
        read_measured(tmp_path)
    assert measurer().measure(tmp_path) == measured
    assert read_measured(tmp_path) == measured


def test_killed_between_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurer().measure(put(tmp_path))

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measured_module, "write_sealed", killed)
        measurer(heldout=[]).measure(tmp_path)
    with pytest.raises(UserError, match="missing or damaged"):
        read_measured(tmp_path)  # the rows are new, the scores would be old


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\x89PNG")])
def test_a_picture_that_is_not_there(tmp_path: Path, damage: Any) -> None:
    damage(put(tmp_path) / "class/0002.png")
    with pytest.raises(UserError, match=r"class/0002\.png"):
        measurer().measure(tmp_path)


def test_interrupted_between_pictures(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (32, len(ASKED))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measurer().measure(put(tmp_path), progress=stop)
    assert not (tmp_path / "scores.json").exists()


def test_the_space_to_choose_by() -> None:
    score = Score(value=0.0, low=0.0, high=0.0, n=1)
    names = [f"subject/fidelity/{space}" for space in ("clip", "dino", "oracle")]
    for count, wanted in enumerate([None, *names]):
        assert fidelity_of(dict.fromkeys(names[:count], score)) == wanted
