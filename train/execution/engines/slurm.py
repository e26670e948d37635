"""Slurm, through submitit: a run is a job. All that jobs need and leave is in the folder `slurm` of the results.

What a run came to is a line with a digest there, and only that is read: the answers of submitit are pickles.
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path

import submitit
from submitit.helpers import Checkpointable, environment_variables

from prune_env import io
from train.execution import workers
from train.execution.companion import line_of
from train.execution.engines import Unavailable, Where, gpus_for, import_path
from train.execution.episode import Run
from train.execution.results import Record
from train.execution.workers import DIED, Failure, Terms

CLUSTER, CANCEL = "slurm", ("scancel",)  # `local` of submitit are processes of this machine, to try it
JOBS, MINUTES = 100, 60  # in the queue at a time; time limit of each
POLL = 1.0  # seconds between looks at the jobs
OUTCOME = "outcome 1"


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`. Raises Unavailable if jobs cannot be submitted."""
    assert terms.folder is not None
    folder = terms.folder / "slurm"
    try:
        executor = submitit.AutoExecutor(folder, cluster=CLUSTER)
        job = {"name": "prune_env", "timeout_min": where.minutes or MINUTES, "slurm_partition": where.partition}
        executor.update_parameters(cpus_per_task=1, gpus_per_node=int(gpus_for(terms, where)) or None, **job)
        for path in folder.glob("*_submitted.pkl"):  # of a driver that was killed: its jobs would be at the same runs
            subprocess.run([*CANCEL, path.name.partition("_")[0]], stderr=subprocess.DEVNULL)  # some are over
            path.unlink()
        yield from workers.with_second_try(partial(_in_jobs, executor, folder, terms), runs, where.workers or JOBS)
    except (RuntimeError, FileNotFoundError) as error:  # of sbatch too
        raise Unavailable(f"{line_of(error)}; --engine slurm runs where sbatch accepts jobs") from error


def _in_jobs(
    executor: submitit.AutoExecutor, folder: Path, terms: Terms, runs: Mapping[str, Run], size: int
) -> Generator[Record | Failure, None, None]:
    """Outcomes of `runs`, at most `size` of them in the queue at a time."""
    waiting, given = deque(runs.items()), {}
    try:
        while waiting or given:
            while waiting and len(given) < size:
                key, run = waiting.popleft()
                if isinstance(outcome := _told(folder, key, run), dict):  # by a job that outlived its driver
                    yield outcome
                _path(folder, key).unlink(missing_ok=True)
                if not isinstance(outcome, dict):
                    with environment_variables(PYTHONPATH=import_path()):  # which jobs inherit
                        given[key] = run, executor.submit(_Job(), key, run, terms)
            time.sleep(POLL)
            for key, (run, job) in list(given.items()):
                if job.done():
                    del given[key]
                    outcome = _told(folder, key, run) or Failure(key, run, DIED, job.stderr() or "")
                    yield outcome
                    _path(folder, key).unlink(missing_ok=True)
                    for path in folder.glob(f"{job.job_id}_*"):
                        if isinstance(outcome, dict) or path.suffix == ".pkl":  # logs may say why
                            path.unlink()
    finally:
        for _, job in given.values():
            job.cancel(check=False)
            job.paths.submitted_pickle.unlink(missing_ok=True)


class _Job(Checkpointable):
    """What a job does; one that reaches its time limit, or has to make room, is queued again with the same run."""

    def __call__(self, key: str, run: Run, terms: Terms) -> None:
        assert terms.folder is not None
        told = workers.alone(key, run, terms)
        line = {"failure": [told.error, told.traceback, told.final]} if isinstance(told, Failure) else told
        io.write_atomic(_path(terms.folder / "slurm", key), io.seal_line(OUTCOME, line))


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _told(folder: Path, key: str, run: Run) -> Record | Failure | None:
    """What the job of this run has left, None if nothing, or nothing whole."""
    list(folder.iterdir())  # a client of NFS that has once found no file asks again only when its folder is opened
    try:
        told = io.unseal_line(OUTCOME, _path(folder, key).read_bytes())
    except (FileNotFoundError, io.DamagedFile):
        return None
    return Failure(key, run, *told["failure"]) if "failure" in told else told
