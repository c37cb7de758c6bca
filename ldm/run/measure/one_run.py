"""The evaluation of one run: while it trains, and at its end."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint import list_snapshots, load_snapshot
from ldm.checkpoint.snapshots import read_manifest
from ldm.config import Config
from ldm.errors import UserError
from ldm.evaluation.gates import REPORTING
from ldm.evaluation.measured import Measured
from ldm.evaluation.report import is_report, write_report
from ldm.models.adapters import exactly_mergeable, merged
from ldm.models.base import BaseModel
from ldm.run.measure.evaluator import FOLDER, Evaluator, task_of
from ldm.run.measure.instruments import load_instruments
from ldm.run.measure.results import (
    Loaded,
    curves_of,
    export_chosen,
    forget_pictures,
    read_all,
    row_of,
    step_name,
    why_early,
    write_result,
)
from ldm.run.prepare import Prepared
from ldm.run.progress import Counted, counted
from ldm.run.settings import as_trained, weights_of
from ldm.run.trained import base_dtype, load_trained, load_untouched
from ldm.training.metrics import fill_rows

log = logging.getLogger(__name__)

Numbers = dict[int, dict[str, float]]  # step -> name -> value


class Measuring:
    """Measures the snapshots of a run with the networks of `ready.base`.

    check: called now and then; what it raises ends the work, which goes on from there the next
    time. counted: shows how far it is. To be made where `config.evaluation` is not None.
    """

    def __init__(
        self,
        config: Config,
        ready: Prepared,
        run: Path,
        check: Callable[[], None] = lambda: None,
        counted: Counted = counted,
    ) -> None:
        assert config.evaluation is not None
        self.config, self.ready, self.run, self.check = config, ready, run, check
        self.counted = counted
        self.section = config.evaluation
        self.instruments = ready.instruments
        self._evaluator: Evaluator | None = None

    def while_training(
        self, device: torch.device, step: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Measure the weights as they are, which the snapshot of `step` holds; refresh results.

        (Where the base is quantised, the snapshot's adapters in the whole base.)

        Of a snapshot that is no longer kept, return what was measured of it before. Return numbers
        for metrics.csv and for the loggers. UserError: no such snapshot and no such numbers, or it
        is damaged; disk not writable.
        """
        if path := self._snapshots().get(step):
            measured = self._measure(step, read_manifest(path), device)
            self._write(device, step)
        elif (before := read_all(self.run, step)[1].get(step)) is not None:
            measured = before
        else:
            raise UserError(
                f"{self.run / 'snapshots'}: the snapshot of step {step} is no longer there "
                f"(snapshots.keep={self.config.snapshots.keep}), and it was not measured"
            )
        scores = measured.scores[REPORTING]
        return row_of(scores), curves_of(scores)

    def over(self, step: int) -> str:
        """Why training ends after `step`; "" where it goes on."""
        return why_early(self.run, self.section, step)

    def at_the_end(self, device: torch.device, last: int) -> tuple[dict[str, Any], Numbers]:
        """Measure what is to be measured, choose, export; metrics.csv gets its numbers.

        Return what evaluation.json holds, and each measured step's metrics. Afterwards `ready.base`
        holds the weights of some snapshot. UserError: nothing can be measured, disk not writable.
        """
        for step, path in self._snapshots().items():
            due = self.section.final or (self.section.every and step % self.section.every == 0)
            if step > last or not due:
                continue
            try:
                manifest = load_snapshot(path, self.ready.networks)
            except UserError as error:
                log.warning("not measured: %s", error)
                continue
            self._measure(step, manifest, device)
        result = self._write(device, last)
        if self.section.export:
            export_chosen(self.run, result, lambda step: self.loaded(step, device))
        base, measured = read_all(self.run, last)
        assert base is not None, "it was just measured"
        scores = {0: base.scores[REPORTING]}
        scores |= {step: one.scores[REPORTING] for step, one in measured.items()}
        fill_rows(self.run / "metrics.csv", {step: row_of(own) for step, own in scores.items()})
        return result, {step: curves_of(own) for step, own in scores.items()}

    def _measure(self, step: int, manifest: dict[str, Any], device: torch.device) -> Measured:
        evaluator = self._evaluator_on(device)
        evaluator.base()  # loads the untouched weights, and lets go of them
        base, adapters, dtype = self.ready.base, self.ready.adapters, None
        if base.bits:  # nothing can be added to these; an export has the whole base as well
            trained, dtype = load_trained(self.run, str(step)), base_dtype(self.config)
            base, adapters = trained.base, dict(trained.adapters)
        else:
            base.to(device)
        weights = weights_of(manifest, base.fingerprint)
        with merged(exactly_mergeable(adapters)):  # faster
            model = as_trained(self.config, base.to(device, dtype))
            return evaluator.measure(step_name(step), model, weights, f"step {step}")

    def _write(self, device: torch.device, last: int) -> dict[str, Any]:
        there = set(self._snapshots())
        forget_pictures(self.run, there)
        present = {step for step in read_all(self.run, last)[1] if step in there}
        if not present:
            raise UserError(f"{self.run / 'snapshots'}: no snapshot is measured, nothing to choose")
        evaluator = self._evaluator_on(device)
        return write_result(self.run, evaluator, self.instruments, self.section, present)

    @contextlib.contextmanager
    def loaded(self, step: int, device: torch.device) -> Iterator[Loaded]:
        """Inside, the model with the snapshot of a step in it, adapters merged.

        In full precision, too, where training keeps the base's weights in less.
        """
        base, adapters = self.ready.base, self.ready.adapters
        if base_dtype(self.config) == torch.float32:
            told = load_snapshot(self._snapshots()[step], self.ready.networks)
        else:
            trained = load_trained(self.run, str(step))
            base, adapters, told = trained.base, dict(trained.adapters), dict(trained.manifest)
        with merged(adapters):
            model = as_trained(self.config, base.to(device))
            yield Loaded(model, weights_of(told, base.fingerprint), adapters)

    def _snapshots(self) -> dict[int, Path]:
        return list_snapshots(self.run / "snapshots")

    def _evaluator_on(self, device: torch.device) -> Evaluator:
        if self._evaluator is None:
            if device.type != "cpu":
                self.instruments = load_instruments(self.section, device)
            self._evaluator = Evaluator(
                task_of(self.config, self.ready),
                self.instruments,
                self.run / FOLDER,
                Path(self.section.root),
                lambda: self._untouched(device),
                self.check,
                self.counted,
            )
        return self._evaluator

    def _untouched(self, device: torch.device) -> BaseModel:
        """The base as it was before training, of the same dtype as what is trained."""
        base = load_untouched(self.config, base_dtype(self.config))
        return base.to(device)


def write_report_or_warn(run: Path) -> bool:
    """Write report.html and report.png, and say whether the first is there; a failure is no more
    than a warning."""
    try:
        write_report(run)
    except Exception as error:
        log.warning("no report in %s: %s: %s", run, type(error).__name__, error)
    return is_report(run)
