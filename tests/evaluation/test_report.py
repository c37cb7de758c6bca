"""report.html and report.png: what stands in them is what was measured, and nothing gets lost."""

import base64
import io
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from ldm.errors import UserError
from ldm.evaluation.report import figures, plots, view, write_report
from ldm.evaluation.report.data import BASE, read_run
from ldm.evaluation.terms import GROUPS, figure, in_order, interval, term
from tests.evaluation.reported import CLASS, UNRELATED, draw_pictures, make_run, scores

ROOT = Path(__file__).parents[2]
VOID = {"meta", "img", "br", "path", "use", "rect", "line"}
FEW = ("subject/fidelity/oracle", "subject/identity", "class/drift/oracle")


@dataclass
class Cell:
    """A cell of a table, as it is read in a browser."""

    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What stands in a page; fails where a tag is closed that is not open."""

    cells: list[Cell] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append(Cell(dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.cells and {"td", "th"} & set(self.open):
            self.cells[-1].text += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == [], "all tags are closed"
    return page


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit evaluation.json."""
    path = run / "evaluation.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def keep_few(content: dict[str, Any]) -> None:
    """Only FEW metrics, for tests that are not about numbers: plots take most of the time."""
    for scores_of in (content["base"], *content["snapshots"].values()):
        for metric in scores_of.keys() - set(FEW):
            del scores_of[metric]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report; not to be changed."""
    run = make_run(tmp_path_factory.mktemp("whole"))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return read_page(whole / "report.html")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run of few metrics, to be changed."""
    run = make_run(tmp_path)
    change(run, keep_few)
    return run


def test_every_number_of_the_table_is_the_files(whole: Path, page: Page) -> None:
    result = json.loads((whole / "evaluation.json").read_text())
    expected = {
        (metric, column): score["value"]
        for column, scores_of in {
            BASE: result["base"],
            **result["snapshots"],
            "ceiling": result["ceiling"],
            "floor": result["floor"],
        }.items()
        for metric, score in scores_of.items()
    }
    shown = {
        (cell.attributes["data-metric"], cell.attributes["data-column"]): cell
        for cell in page.cells
        if "data-metric" in cell.attributes
    }
    assert len(expected) == 3 * len(scores(0.0)) + 3
    values = {key: float(cell.attributes["data-value"] or "nan") for key, cell in shown.items()}
    assert values == expected
    identity = result["snapshots"]["200"]["subject/identity"]
    low, high = 100 * identity["low"], 100 * identity["high"]
    text = f"{100 * identity['value']:.1f} %{low:.0f} to {high:.0f}"
    assert shown["subject/identity", "200"].text == text
    drift = result["snapshots"]["200"]["class/drift/oracle"]
    text = f"{drift['value']:.3f}{drift['low']:.3f} to {drift['high']:.3f}"
    assert shown["class/drift/oracle", "200"].text == text


def test_nothing_is_fetched_from_elsewhere(whole: Path, page: Page) -> None:
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?:|//[a-z]|@import|<script|<link|<iframe", text) == []
    places = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset") and value
    ]
    assert places
    assert all(place.startswith(("data:image/", "#")) for place in places)
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_ids_are_unique_and_all_that_is_referred_to_is_there(page: Page) -> None:
    ids = [str(attributes["id"]) for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    plotted = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(plotted) > 5
    assert all(attributes["role"] == "img" for attributes in plotted)
    used = {str(a["href"])[1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert used <= set(ids)


def test_sections_stand_in_their_order(page: Page) -> None:
    found = [str(a["id"]) for tag, a in page.tags if tag == "section"]
    assert found == [
        *("subject", "grid", "tradeoff", "curves", "metrics", "gates", "missing", "oracle"),
        *("class", "unrelated", "provenance"),
    ]
    for text in (
        *("It draws the subject. Step 200 is chosen.", "Training pictures (2)"),
        *("Held-out pictures (1), which training never saw", "clip: the model cannot be had"),
        *("steps 200: fewer steps", "python main.py --base configs/dreambooth.yaml"),
        *("0.80 %", "DINO: likeness to the subject", "PRES: likeness to the subject (DINO)"),
    ):
        assert text.replace("steps 200", "step 200") in page.text, text


def test_the_chosen_one_is_marked(whole: Path, page: Page, small: Path) -> None:
    heads = [cell.text for cell in page.cells if cell.attributes.get("class") == "chosen"]
    assert heads[0] == "step 200★ chosen"
    of_snapshots = [c for c in page.cells if c.attributes.get("data-column") in ("100", "200")]
    for cell in of_snapshots:
        chosen = cell.attributes["data-column"] == "200"
        assert (cell.attributes.get("class") == "chosen") == chosen
    framed = [a for _, a in page.tags if (a.get("class") or "").endswith(" chosen")]
    assert len(framed) == 1 + 2, "its head in the grid, and a cell for each of two prompts"
    gold = ImageColor.getrgb(plots.COLOURS["gold"])
    with Image.open(whole / "report.png") as picture:
        assert picture.width == 1600
        assert count(picture, gold) > 1000
    change(small, lambda content: content.update(chosen=None))
    write_report(small)
    text = (small / "report.html").read_text()
    assert "★" not in text
    assert not re.findall(r'class="[^"]*\bchosen\b', text)
    with Image.open(small / "report.png") as picture:
        assert count(picture, gold) == 0


def count(picture: Image.Image, colour: tuple[int, ...]) -> int:
    """Pixels of exactly this colour."""
    found = picture.convert("RGB").getcolors(2**24) or []
    return sum(number for number, value in found if value == colour)


def test_text_of_users_is_no_markup(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> \'"><img src=x onerror=alert(2)> $x_1$ {{ 7 * 7 }}'
    run = make_run(tmp_path, steps=(100,), chosen=100, prompts=((evil,), CLASS, UNRELATED))
    change(run, keep_few)
    change(
        run,
        lambda content: content.update(
            verdict=evil,
            reasons=[evil],
            missing={evil: evil},
            oracle={evil: evil},
            subject={"identifier": evil, "class_noun": evil},
            gates={
                "100": [{"name": evil, "passed": False, "value": 1, "limit": 0, "advice": evil}]
            },
            versions={evil: evil},
        ),
    )
    change(run, lambda content: content["base"].update({evil: scores(0.0)[FEW[0]]}))
    (run / "config.yaml").write_text(f"# {evil}\nsubject:\n  pictures: {tmp_path / 'subject'}\n")
    write_report(run)
    page = read_page(run / "report.html")
    assert all(tag != "script" for tag, _ in page.tags)
    assert all((a.get("src") or "").startswith("data:") for tag, a in page.tags if tag == "img")
    assert page.text.count(" ".join(evil.split())) >= 9


def test_the_same_files_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    before = [path.read_bytes() for path in (whole / "report.html", whole / "report.png")]
    again = write_report(whole)
    assert [path.name for path in again] == ["report.html", "report.png"]
    assert [path.read_bytes() for path in again] == before
    assert [path for path in whole.iterdir() if path.name.startswith(".")] == []


def damage(path: Path) -> None:
    path.write_bytes(b"not what it was")


def lose_texts(run: Path) -> None:
    for name in ("run.json", "config.yaml", "metrics.csv"):
        (run / name).unlink()
    change(run, lambda content: content.pop("gates"))


def damage_texts(run: Path) -> None:
    for name in ("run.json", "config.yaml", "metrics.csv"):
        damage(run / name)


def lose_pictures(run: Path) -> None:
    shutil.rmtree(run / "evaluation/base")
    (run / "evaluation/step-000100/pictures.json").unlink()
    (run / "evaluation/step-000200/subject/000.png").unlink()
    shutil.rmtree(run.parent / "subject")


def damage_pictures(run: Path) -> None:
    for name in ("step-000200/subject/000.png", "base/class/0000.png"):
        damage(run / "evaluation" / name)
    damage(run.parent / "subject/0.png")
    damage(run / "evaluation/step-000100/pictures.json")


def keep_numbers(content: dict[str, Any]) -> None:
    for key in content.keys() - {"base", "snapshots", "chosen"}:
        del content[key]


MISSING: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "texts": (lose_texts, ("config.yaml does not name them",)),
    "damaged texts": (damage_texts, ("config.yaml does not name them",)),
    "pictures": (
        lose_pictures,
        ("pictures of base", "step-000100: they are not", "1 of 10 are not", "does not exist"),
    ),
    "damaged pictures": (damage_pictures, ("step-000100: they are not",)),
    "all pictures": (lambda run: shutil.rmtree(run / "evaluation"), ()),
    "base": (lambda run: change(run, lambda content: content.pop("base")), ()),
    "snapshots": (lambda run: change(run, lambda c: c.update(snapshots={}, gates={})), ()),
    "all but numbers": (lambda run: change(run, keep_numbers), ()),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_left_out_and_named(small: Path, what: str) -> None:
    lose, notes = MISSING[what]
    lose(small)
    write_report(small)
    text = read_page(small / "report.html").text
    assert all(note in text for note in notes), text
    with Image.open(small / "report.png") as picture:
        assert picture.width == 1600


def test_a_run_in_the_middle_of_training(small: Path) -> None:
    (small / "evaluation.json").unlink()
    shutil.rmtree(small / "evaluation")
    (small / "samples").mkdir()
    for step in range(0, 700, 100):
        Image.new("RGB", (900, 300), (step % 255, 0, 0)).save(
            small / "samples" / f"step-{step:06d}.png"
        )
    write_report(small)
    page = read_page(small / "report.html")
    assert "Not evaluated yet. Training is at step 200 of 200." in page.text
    shown = [str(a["alt"]) for tag, a in page.tags if tag == "img"]
    assert [alt for alt in shown if "png" not in alt] == [
        *("untouched base", "step 400", "step 500", "step 600")
    ]
    assert "Loss" in page.text, "the curves"
    assert not any("data-metric" in cell.attributes for cell in page.cells)


def test_an_empty_run_folder(tmp_path: Path) -> None:
    write_report(tmp_path)
    assert "Not evaluated yet" in read_page(tmp_path / "report.html").text


def test_wrong_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; give one from logs/"):
        write_report(tmp_path / "nowhere")
    damage(tmp_path / "evaluation.json")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        write_report(tmp_path)


def test_numbers_that_are_none(small: Path) -> None:
    nan, none = float("nan"), None
    bad = {
        "subject/fidelity/oracle": {"value": nan, "low": nan, "high": nan, "n": 0},
        "subject/identity": {"value": none, "low": none, "high": none, "n": none},
        "class/drift/oracle": {"value": 0.5, "low": nan, "high": none, "n": 3},
        "loss/class": None,
    }
    change(small, lambda content: content["snapshots"].update({"100": bad}))
    gates = [{"name": "class/identity", "passed": False, "value": nan, "limit": none, "advice": ""}]
    change(small, lambda content: content["gates"].update({"100": gates}))
    (small / "metrics.csv").write_text("step,loss/instance\n1,nan\n2,0.5\n3,inf\n4,0.4\n5,0.")
    write_report(small)
    page = read_page(small / "report.html")
    shown = {
        cell.attributes["data-metric"]: cell
        for cell in page.cells
        if cell.attributes.get("data-column") == "100"
    }
    assert shown["subject/identity"].text == "–"
    assert shown["subject/fidelity/oracle"].text == "–"
    assert "data-value" not in shown["subject/fidelity/oracle"].attributes
    assert shown["class/drift/oracle"].text.startswith("0.500")
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    assert read_run(small).losses == {"loss/instance": [(2, 0.5), (4, 0.4), (5, 0.0)]}


def test_pictures_and_subject_can_be_given(small: Path, tmp_path: Path) -> None:
    shutil.move(small / "evaluation/base", tmp_path / "elsewhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    write_report(small, tmp_path / "elsewhere", [tmp_path / "mine.png"])
    page = read_page(small / "report.html")
    alts = [str(a.get("alt")) for tag, a in page.tags if tag == "img"]
    assert "mine.png" in alts
    assert any(alt.startswith("untouched base: ") for alt in alts)
    assert "Held-out" not in page.text


def test_large_pictures_are_scaled_down_and_small_ones_kept(tmp_path: Path) -> None:
    noise = Image.effect_noise((512, 384), 80).convert("RGB")
    noise.save(tmp_path / "large.png")
    noise.resize((64, 64)).save(tmp_path / "small.png")
    opened = {}
    for name in ("large", "small"):
        url = view.data_url(tmp_path / f"{name}.png")
        assert url is not None
        opened[name] = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert opened["large"].size == (192, 144)
    assert opened["small"].convert("RGB").tobytes() == noise.resize((64, 64)).tobytes()


def test_a_grid_of_many_snapshots_shows_some_and_the_chosen(tmp_path: Path) -> None:
    for step in range(0, 5000, 100):
        draw_pictures(tmp_path / f"evaluation/step-{step:06d}", str(step), seeds=(1,))
    (tmp_path / "evaluation.json").write_text(json.dumps({"chosen": 1300, "snapshots": {}}))
    columns = view.columns(read_run(tmp_path))
    titles = [column.title for column in columns]
    assert len(titles) == view.COLUMNS
    assert {"step 0", "step 1300", "step 4900"} <= set(titles)
    assert [column.title for column in columns if column.mark == "chosen"] == ["step 1300"]


def test_rows_of_a_grid_hold_common_seeds(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "evaluation/base", "base", seeds=(1, 2, 3))
    draw_pictures(tmp_path / "evaluation/step-000100", "100", seeds=(3, 4))
    columns = view.columns(read_run(tmp_path))
    row, *others = view.rows(columns, "subject", budget=0)
    assert len(others) == 1
    assert [[path and path.parent.parent.name for path in cell] for cell in row.cells] == [
        ["base"],
        ["step-000100"],
    ]
    assert columns[0].drawn.paths["subject", row.prompt, 3] == row.cells[0][0]
    assert len(view.rows(columns, "subject", budget=1000)[0].cells[0]) == 4


def test_gate_limits_are_drawn(whole: Path) -> None:
    run = read_run(whole)
    fidelity = "subject/fidelity/oracle"
    assert figures._limits(run, ("unrelated/drift/oracle", fidelity)) == [
        ("y", "ceiling: real pictures", 0.93),
        ("y", "gate: half of the way", 0.57),
        ("x", "gate", 0.1),
    ]
    drawn = figures.tradeoffs(run)
    assert len(drawn) == 2
    texts = {text.get_text() for text in drawn[1].axes[0].texts}
    assert texts == {"base", "100", "200, chosen"}


def test_plots_show_the_numbers(whole: Path) -> None:
    run = read_run(whole)
    fidelity = next(f for f in figures.panels(run) if "Likeness" in f.axes[0].get_title("left"))
    lines = {line.get_label(): line for line in fidelity.axes[0].lines}
    result = json.loads((whole / "evaluation.json").read_text())
    expected = [
        [0, result["base"]["subject/fidelity/dino"]["value"]],
        *([s, result["snapshots"][str(s)]["subject/fidelity/dino"]["value"]] for s in (100, 200)),
    ]
    assert np.asarray(lines["DINO"].get_xydata()).tolist() == expected
    losses = figures.losses(run)
    assert [f.axes[0].get_title("left")[:10] for f in losses] == ["Loss on th", "Loss on cl"]


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert plots.smooth([3.0]) == [3.0]
    assert plots.smooth([0.5] * 50) == pytest.approx([0.5] * 50)
    keep = 0.8
    assert plots.smooth([1.0, 0.0])[1] == pytest.approx(keep / (keep + 1))


def test_plots_leave_matplotlib_as_it_was(whole: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.svg(figures.losses(read_run(whole))[0], "a <title>")
    assert dict(matplotlib.rcParams) == before


def test_names_and_numbers_for_people() -> None:
    assert [figure(v, False) for v in (0, 0.1234, 0.0234, 0.00234, 0.000234, -0.5)] == [
        *("0.000", "0.123", "0.023", "0.0023", "2.3e-04", "-0.500")
    ]
    assert figure(0.8754, True) == "87.5 %"
    assert interval(0.81, 0.92, True) == "81 to 92"
    assert term("subject/fidelity/clip").name == "CLIP-I: likeness to the subject"
    assert term("subject/diversity/lpips_alex").name == "DIV: LPIPS alex, subject prompts"
    assert term("class/change/colour").name == "change of how often each colour is drawn"
    assert term("made/up").name == "made/up"
    known = in_order({*scores(0.0), "made/up"})
    groups = list(dict.fromkeys(term(metric).group for metric in known))
    assert groups == [group for group in GROUPS if group in groups]
    assert known[-1] == "made/up"


def test_templates_are_installed_with_the_package() -> None:
    import fnmatch

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["ldm.evaluation.report"]
    folder = ROOT / "ldm/evaluation/report"
    files = [path.name for path in folder.iterdir() if path.suffix not in (".py", "")]
    assert len(files) == 3
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in files)
