"""A run's report, written."""

from collections.abc import Sequence
from pathlib import Path

from ldm.checkpoint.files import flush, staging
from ldm.errors import explain_disk_errors
from ldm.evaluation.report.data import read_run
from ldm.evaluation.report.live import Status

HTML, PNG = "report.html", "report.png"


def write_report(
    run: Path,
    base_pictures: Path | None = None,
    training: Sequence[Path] = (),
    heldout: Sequence[Path] = (),
) -> list[Path]:
    """Write RUN/report.html and RUN/report.png from the files of a run; return their paths.

    No model is needed, and nothing but the folder has to be there: what is missing is left out
    and named. The same files give the same bytes. base_pictures: folder with the untouched base's
    pictures; None: the one that evaluation.json names as "base_pictures". training, heldout: the
    subject's pictures; neither given: those listed in evaluation.json's "subject" under these
    names, else those in the folder that config.yaml names.

    UserError: no such folder, evaluation.json damaged, disk not writable.
    """
    from ldm.evaluation.report.html import page
    from ldm.evaluation.report.picture import sheet

    files = read_run(run, base_pictures, training, heldout)
    write_text(run / HTML, page(files))
    with explain_disk_errors(run / PNG), staging(run / PNG) as staged:
        sheet(files).save(staged, format="PNG", optimize=True)
        flush(staged)
    return [run / HTML, run / PNG]


def is_report(run: Path) -> bool:
    """Whether RUN/report.html is there, and not the page of a run that has not ended."""
    file = run / HTML
    return file.is_file() and '<section id="status"' not in file.read_text("utf-8")


def write_live(run: Path, status: Status) -> Path:
    """Write RUN/report.html of a run that has not ended, from what is there of it; return its path.

    `write_report` takes its place at the end; RUN/report.png, of an earlier end, goes. UserError:
    as `write_report`.
    """
    from ldm.evaluation.report.html import page

    with explain_disk_errors(run / PNG):
        (run / PNG).unlink(missing_ok=True)
    write_text(run / HTML, page(read_run(run), status))
    return run / HTML


def write_text(path: Path, text: str) -> None:
    """Write a text file, staged, flushed and renamed. UserError: disk not writable."""
    with explain_disk_errors(path), staging(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")
        flush(staged)
