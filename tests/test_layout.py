"""The house rules: who may import whom, what stands where, how long it may be."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ldm"
# Data flows from left to right; a room imports only rooms to its left.
ROOMS = [
    ["errors", "config", "randomness"],
    ["data"],
    ["models"],
    ["objective"],
    ["sampling"],
    ["checkpoint"],
    ["training"],
    ["export"],
    ["evaluation"],
    ["run"],  # puts rooms together for main.py
    ["study"],  # starts many runs, each a process of its own
]
ORDER = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of `ldm.room`, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            names = [module] if module != "ldm" else [f"ldm.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}:{node.lineno}: relative import; write it out")
        else:
            continue
        for name in names:
            if name.startswith("ldm."):
                yield node.lineno, name.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_is_left_of_them(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "storybook"):
        return
    assert room in ORDER, f"{path}: a new room; give it a place in the order"
    for line, other in imported_rooms(path):
        assert other != "storybook", f"{path}:{line}: a run reaches the storybook by a dotted path"
        allowed = other == room or (ORDER[other] < ORDER[room]) or ORDER[room] == ORDER[other] == 0
        assert allowed, f"{path}:{line}: {room} may not import {other}"


def test_storybook_stands_apart() -> None:
    for path in (PACKAGE / "storybook").rglob("*.py"):
        rooms = {room for _, room in imported_rooms(path)} - {"storybook"}
        if "pretraining" in path.parts:  # trains with the rooms that users train with
            assert not rooms & {"config", "training", "run"}, f"{path} imports {rooms}"
        else:  # the oracle answers in the evaluation's terms
            assert rooms <= {"errors", "randomness", "evaluation"}, f"{path} imports {rooms}"


def test_config_objects_stay_with_main_and_builders() -> None:
    for path in SOURCES:
        if room_of(path) not in ("config", "run"):
            rooms = {room for _, room in imported_rooms(path)}
            assert "config" not in rooms, f"{path}: rooms take plain arguments"


def test_package_never_prints() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"


def test_main_is_short_and_has_no_classes() -> None:
    text = (ROOT / "main.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(text)))


def test_sizes() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, f"{path} is a crowded room"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno} {node.name}: {length} lines"


def test_training_step_is_readable() -> None:
    tree = ast.parse((PACKAGE / "training" / "module.py").read_text(encoding="utf-8"))
    steps = [n for n in ast.walk(tree) if getattr(n, "name", "") == "training_step"]
    assert len(steps) == 1 and isinstance(steps[0], ast.FunctionDef)
    first = steps[0].body[1]  # after the docstring
    assert (steps[0].end_lineno or 0) - first.lineno < 18


def test_what_stands_where() -> None:
    for name in (
        "main.py",
        "configs/dreambooth.yaml",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        ".ci/run",
        ".gitignore",
        "logs/.gitkeep",
        "tests/conftest.py",
    ):
        assert (ROOT / name).exists(), name
    assert (ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run is executable"
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def tracked_texts() -> list[Path]:
    """Text files of the repository: those that git has or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".md", ".ipynb", ".yaml", ".toml", ".txt", ".json", ".jsonl", ".csv", ""}
    paths = [ROOT / name for name in made.stdout.splitlines()]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def test_no_text_mentions_the_machine_it_was_written_on() -> None:
    traces = ["/".join(["", place, ""]) for place in ("work", "root", "home")]
    for path in tracked_texts():
        if path.name in ("LICENSE",) or path.stat().st_size > 2**20:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found = [trace for trace in traces if trace in text]
        assert not found, f"{path.relative_to(ROOT)} mentions {found}"
