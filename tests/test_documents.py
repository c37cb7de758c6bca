"""Every command that a document prints is one that programs take; every link leads somewhere."""

import argparse
import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ldm.config import load_config
from ldm.storybook.pretraining.settings import PretrainSettings
from ldm.study.space import corners, read_space

ROOT = Path(__file__).parent.parent
MAIN_JOB = ROOT / "configs" / "dreambooth.yaml"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/storybook-sd/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PROGRAMS = [ROOT / "main.py", *sorted((ROOT / "scripts").glob("*.py"))]
START = re.compile(r"python (?:main\.py|scripts/|-m )|torchrun |srun |make ")
INLINE = re.compile(rf"`((?:{START.pattern})[^`]+)`")
FENCED = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
ON_TOP = ("scripts/preflight.py", "scripts/evaluate.py")  # take overlays without the main job
ENDS = {"&&", "||", "|", ";", ">"}  # of a command, in a shell
READERS = re.compile(r"(?:my|logs|preflight)/|[A-Z_]+$")  # files and folders that a reader has


def blocks(path: Path) -> Iterator[str]:
    """Texts with a command at the start of a line."""
    if path.suffix == ".py":
        tree = ast.parse(path.read_text("utf-8"))
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        yield from (text for text in texts if isinstance(text, str) and "\n" in text)
    elif path.suffix == ".yaml":
        comments = re.findall(r"^#(.*)$", path.read_text("utf-8"), re.MULTILINE)
        yield "\n".join(comments)
    else:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
            text = "\n\n".join("".join(cell["source"]) for cell in cells)
        yield from FENCED.findall(text)
        yield from (command.replace("\n", " ") for command in INLINE.findall(text))


def printed(path: Path) -> Iterator[str]:
    """The commands of a file, each in one line."""
    for block in blocks(path):
        for line in block.replace("\\\n", " ").splitlines():
            if START.match(line.strip()):
                yield re.sub(" +", " ", line.strip())


COMMANDS = sorted(
    {
        (command, path.relative_to(ROOT).as_posix())
        for path in [*PAGES, *NOTEBOOKS, *CONFIGS, *PROGRAMS]
        for command in printed(path)
    }
)


def module_of(name: str) -> Any:
    """What `python NAME` or `python -m NAME` runs."""
    dotted = name.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(dotted)
    return importlib.import_module(f"{dotted}.__main__") if hasattr(module, "__path__") else module


class Parsed(Exception):
    """Stops a program that has read its command line."""


def parsed(module: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Its command line as the program reads it."""
    if hasattr(module, "parse"):
        args = module.parse(words)
        assert isinstance(args, argparse.Namespace)
        return args
    read = argparse.ArgumentParser.parse_args

    def read_and_stop(parser: argparse.ArgumentParser, words: list[str] | None = None) -> None:
        read(parser, words)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
        patch.setattr(sys, "argv", [module.__name__, *words])
        if hasattr(module, "main"):
            with pytest.raises(Parsed):
                module.main()
        else:
            assert not words, "takes nothing"
    return argparse.Namespace()


def check_settings(program: str, args: argparse.Namespace) -> None:
    """UserError: files or keys that do not exist, values that are refused."""
    if program == "scripts/pretrain.py":
        assert args.config.is_file()
        known = {field.name for field in fields(PretrainSettings)}
        assert {word.partition("=")[0] for word in args.overrides} <= known
    elif hasattr(args, "overrides") or program == "scripts/sweep.py":
        files = [file for file in args.files if not READERS.match(str(file))]
        if program in ON_TOP or not files:
            files = [MAIN_JOB, *files]
        space, fixed = read_space(args.words) if "words" in args else ({}, args.overrides)
        for ends in corners(space) if space else [[]]:
            load_config(files, [*fixed, *ends])


@pytest.mark.parametrize(("command", "document"), COMMANDS)
def test_printed_commands_are_valid(
    command: str,
    document: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    words = words[: next((place for place, word in enumerate(words) if word in ENDS), len(words))]
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        return
    if words[:2] == ["python", "-m"]:
        program, rest = words[2], words[3:]
    else:
        place = next(i for i, word in enumerate(words) if re.match(r"main\.py|scripts/", word))
        program, rest = words[place], words[place + 1 :]
        assert (ROOT / program).is_file()
    try:
        args = parsed(module_of(program), rest, monkeypatch)
    except SystemExit:
        pytest.fail(f"{document}: {command}\n{capsys.readouterr().err}")
    if program.endswith(".py"):
        check_settings(program, args)


def anchors(path: Path) -> set[str]:
    """What a heading is linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        place, _, anchor = link.partition("#")
        if place.startswith("http"):
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
