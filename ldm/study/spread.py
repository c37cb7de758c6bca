"""Where the runs of a study are done: one after the other here, or by submitit's jobs."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.study.command import EXECUTORS
from ldm.study.runs import Outcome, Task, bring

log = logging.getLogger(__name__)

POLL = 2.0  # seconds between looks at running jobs
MINUTES = 24 * 60  # a job's time limit where none is given


def spread(
    tasks: Sequence[Task],
    executor: str = "loop",
    *,
    jobs: int = 1,
    folder: Path = Path("jobs"),
    options: Mapping[str, Any] | None = None,
    gpus: Sequence[int] = (),
    poll: float = POLL,
) -> Iterator[Outcome]:
    """Do every task; outcomes as they come.

    executor: "loop" does one after the other in this process; "local" gives them to processes on
    this machine, `jobs` at a time, "slurm" to SLURM, `jobs` in its queue at a time, both by
    submitit. options: of submitit's `update_parameters` (slurm_partition, cpus_per_task ...).
    folder: of submitit's files, on a disk that all machines see. gpus: of this machine, one for
    each job in turn; without them "local" jobs see none. When the caller stops, jobs are cancelled.
    UserError: unknown executor, options that submitit refuses.
    """
    if executor == "loop":
        yield from (bring(task) for task in tasks)
        return
    if executor not in EXECUTORS:
        raise UserError(f"executor {executor!r}: must be one of {', '.join(EXECUTORS)}")
    yield from _submitted(tasks, executor, jobs, folder, dict(options or {}), gpus, poll)


def _submitted(
    tasks: Sequence[Task],
    cluster: str,
    jobs: int,
    folder: Path,
    options: dict[str, Any],
    gpus: Sequence[int],
    poll: float,
) -> Iterator[Outcome]:
    executor = _executor(cluster, folder, options)
    waiting = list(tasks)
    running: dict[Any, tuple[Any, Task, int]] = {}  # job, task, place
    free = list(range(jobs))  # places, each with a share of the machine
    with ExitStack() as at_end:
        at_end.callback(lambda: [job.cancel(check=False) for job, _, _ in running.values()])
        while waiting or running:
            while waiting and free:
                task, place = waiting.pop(0), free.pop(0)
                if cluster == "local":
                    task = _with_share(task, place, jobs, gpus)
                running[task.name, task.folder] = (executor.submit(bring, task), task, place)
            for key, (job, task, place) in list(running.items()):
                if job.done():
                    del running[key]
                    free.append(place)
                    yield _result(job, task)
            if running:
                time.sleep(poll)


def _executor(cluster: str, folder: Path, options: dict[str, Any]) -> Any:
    import submitit

    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**{"timeout_min": MINUTES, **options})
    except Exception as error:  # of whatever kind: submitit has many
        raise UserError(f"--executor {cluster}: {error}") from error
    return executor


def _with_share(task: Task, place: int, jobs: int, gpus: Sequence[int]) -> Task:
    """Processes on one machine share its cores, unless the user has said how, and its GPUs."""
    share = {"CUDA_VISIBLE_DEVICES": str(gpus[place % len(gpus)])} if gpus else {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return replace(task, environment={**task.environment, **share})


def _result(job: Any, task: Task) -> Outcome:
    try:
        return job.result()
    except Exception as error:  # the job died: killed, out of memory, its machine gone
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Outcome(task, "failed", tail=tuple(lines[-20:]))
