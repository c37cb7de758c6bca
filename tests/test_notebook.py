"""The notebook runs from its first cell to its last, and is kept without what it once showed."""

import os
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "dreambooth.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_not_kept(notebook: nbformat.NotebookNode) -> None:
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None, cell.source


def test_runs(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps, few pictures, nothing of it in the repository."""
    places = {"data.cache": "cache", "prior.root": "prior", "evaluation.root": "evaluation"}
    options = [
        *(f"{key}={tmp_path / folder}" for key, folder in places.items()),
        *("prior.prompt=a drawing of a robot", "prior.count=2", "prior.steps=2"),
        *("samples.prompts=['a drawing of [V] robot']", "samples.count=1", "sampling.steps=3"),
        "evaluation.prompts=['a drawing of [V] robot', 'a drawing of [V] robot in the snow']",
        "evaluation.unrelated=['a drawing of a red dog']",
        *("evaluation.images=1", "evaluation.class_images=2", "evaluation.unrelated_images=1"),
        "evaluation.steps=2",
    ]
    settings = f"STEPS, SEEDS, OPTIONS, FOLDER = 2, '0', {shlex.join(options)!r}, {str(tmp_path)!r}"
    (place,) = (
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(settings))

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute()

    shown = {cell.source: str(cell.outputs) for cell in code_cells(notebook)}
    for source, outputs in shown.items():
        assert "SystemExit" not in outputs and "Traceback" not in outputs, outputs
        if "Image.open(" in source or "pipeline(" in source:
            assert "image/png" in outputs, source
    (numbers,) = (outputs for source, outputs in shown.items() if "evaluation.json" in source)
    assert "subject/fidelity/oracle" in numbers and "is refused" in numbers
