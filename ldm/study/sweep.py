"""A search over configurations, with Optuna: fidelity within the gates, on the choosing half."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.evaluation.measured import fidelity_of
from ldm.study.runs import Outcome, Task, bring, evaluation_of
from ldm.study.space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial

log = logging.getLogger(__name__)

JOURNAL, STUDY, LOCKS = "journal.log", "sweep", "locks"
GATES = "gates"  # the constraint: 0 where every subject has a snapshot that passes
ABANDONED = "abandoned"  # of the study: trials whose process died; others took their places
STARTUP = 5  # trials that are drawn at random, and never stopped early


@dataclass(frozen=True)
class Verdict:
    """What a run is worth.

    value: the chosen snapshot's fidelity on the choosing half, -1 to 1; where none passes the
    gates, below -1, the lower the further off. violation: 0, or how far the nearest snapshot is
    from passing, as a sum of shares of the limits.
    """

    value: float
    violation: float


def verdict_of(evaluation: Mapping[str, Any]) -> Verdict:
    """Judge an evaluation.json. UserError: no metric of fidelity in it."""
    chosen, scores = evaluation["chosen"], evaluation["choosing"]["snapshots"]
    if chosen is None and evaluation["gates"]:
        violation = min(_violation(gates) for gates in evaluation["gates"].values())
        return Verdict(-1 - violation / (1 + violation), violation)
    found = scores.get(str(chosen), {})
    if (name := fidelity_of(found)) is None:
        raise UserError("evaluation.json: no subject/fidelity; set evaluation.oracle, dino or clip")
    return Verdict(found[name]["value"], 0.0)


def _violation(gates: Sequence[Mapping[str, Any]]) -> float:
    """Sum over broken gates of the distance to the limit, as a share of it (at least of 0.1)."""
    broken = [gate for gate in gates if not gate["passed"]]
    shares = [abs(gate["value"] - gate["limit"]) / max(abs(gate["limit"]), 0.1) for gate in broken]
    return max(sum(shares), 1e-6)  # what is broken at its limit is broken


@dataclass
class Sweep:
    """One search: a folder that holds all of it.

    tasks_of: a trial's parameters and the folder of its runs -> a task per subject, in the order
    they are done. conditions: what must be the same for its trials to be compared. trials: how
    many there shall be, those of other processes and of earlier times included.
    """

    out: Path
    space: Space
    tasks_of: Callable[[Mapping[str, Any], Path], list[Task]]
    conditions: Mapping[str, Any]
    trials: int
    seed: int = 0

    def open(self, first: Mapping[str, Any]) -> "Study":
        """The study, made if it is not there; its first trial has the parameters `first`.

        UserError: it is there, and of another space or under other conditions.
        """
        with self.locked():
            study = open_study(self.out)
            mine = json.loads(json.dumps({**self.conditions, "space": _described(self.space)}))
            theirs = study.user_attrs.get("conditions")
            if theirs is None:
                study.set_user_attr("conditions", mine)
                if first:
                    study.enqueue_trial(dict(first))
            elif theirs != mine:
                unlike = ", ".join(k for k in mine if mine[k] != theirs.get(k))
                raise UserError(
                    f"{self.out} holds a sweep with another {unlike}; give another --out"
                )
        return study

    def run(self, study: "Study", report: Callable[["Trial", str], None]) -> None:
        """Do trials until there are enough; several processes may do so at once."""
        from optuna.trial import TrialState

        while True:
            with contextlib.ExitStack() as held:
                with self.locked():
                    trial = self._next(study, held)
                if trial is None:
                    return
                state, value = self._do(trial)
                study.tell(trial, value, state=state)
                words = {TrialState.FAIL: "failed", TrialState.PRUNED: "stopped early"}
                report(trial, words.get(state, f"value {value:.4f}" if value is not None else ""))

    def _next(self, study: "Study", held: contextlib.ExitStack) -> "Trial | None":
        """The next trial, held by this process; None where there are enough."""
        from optuna.samplers import TPESampler

        give_up_abandoned(study, self.out / LOCKS)
        past, abandoned = study.get_trials(deepcopy=False), study.user_attrs.get(ABANDONED, [])
        begun = [t for t in past if t.number not in abandoned and t.state.name != "WAITING"]
        if len(begun) >= self.trials:
            return None
        # A function of what was seen, so that processes draw differently and a restart the same.
        study.sampler = TPESampler(seed=self.seed + len(past), n_startup_trials=STARTUP)
        trial = study.ask({key: part.distribution() for key, part in self.space.items()})
        held.enter_context(_lock_of(self.out / LOCKS, trial.number))
        return trial

    def _do(self, trial: "Trial") -> tuple[Any, float | None]:
        """Train and measure each subject in turn, and stop where the others did better so far."""
        from optuna.trial import TrialState

        tasks = self.tasks_of(trial.params, self.out / "runs" / digest_of(trial.params))
        verdicts: list[Verdict] = []
        mean = 0.0
        for place, task in enumerate(tasks):
            outcome = bring(task)
            found = (
                evaluation_of(outcome.run) if outcome.run and outcome.state != "failed" else None
            )
            if found is None:
                _note_failure(trial, outcome)
                return TrialState.FAIL, None
            verdicts.append(verdict_of(found))
            trial.set_user_attr(task.name, verdicts[-1].value)
            mean = sum(one.value for one in verdicts) / len(verdicts)
            trial.report(mean, place)
            if place + 1 < len(tasks) and trial.should_prune():
                self._constrain(trial, verdicts)
                return TrialState.PRUNED, None
        self._constrain(trial, verdicts)
        return TrialState.COMPLETE, mean

    def _constrain(self, trial: "Trial", verdicts: Sequence[Verdict]) -> None:
        trial.set_constraint(GATES, max(one.violation for one in verdicts))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time: asks for trials, gives up those of dead ones, writes results."""
        import filelock

        self.out.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.out / ".sweep.lock"):
            yield


def open_study(out: Path) -> "Study":
    """The study kept in OUT/journal.log, which several processes may use (also over NFS)."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        study_name=STUDY,
        storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        load_if_exists=True,
    )


def give_up_abandoned(study: "Study", locks: Path) -> None:
    """Have trials of processes that died done again, first of all; their runs go on, see `bring`.

    For the process that holds the sweep's lock.
    """
    import filelock
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        try:
            with _lock_of(locks, trial.number):
                log.warning("trial %d was broken off; it goes on", trial.number)
                study.enqueue_trial(trial.params)
                study.tell(trial.number, state=TrialState.FAIL)
                abandoned = [*study.user_attrs.get(ABANDONED, []), trial.number]
                study.set_user_attr(ABANDONED, abandoned)
        except filelock.Timeout:
            continue  # its process lives


@contextlib.contextmanager
def _lock_of(locks: Path, number: int) -> Iterator[None]:
    """Inside, trial `number` is this process's. filelock.Timeout: it is another one's."""
    import filelock

    locks.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(locks / f"{number:04d}", timeout=0):
        yield


def digest_of(parameters: Mapping[str, Any]) -> str:
    """A folder name: equal parameters share their runs, whichever trial asks for them."""
    text = json.dumps(parameters, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _described(space: Space) -> dict[str, str]:
    return {key: str(part) for key, part in space.items()}


def _note_failure(trial: "Trial", outcome: Outcome) -> None:
    trial.set_user_attr("failed", "\n".join(outcome.tail))
    log.warning("trial %d, %s failed: %s", trial.number, outcome.task.name, "\n".join(outcome.tail))
