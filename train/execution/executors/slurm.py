"""Slurm, through submitit: a run is a job. All that jobs need and leave is in the folder `slurm` of the results."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import submitit
import torch
from submitit.helpers import Checkpointable, environment_variables

from train.execution.agent import line_of
from train.execution.executors import Outcome, Unavailable, Where, gpus_for, import_path
from train.execution.run import Failure, Run, Terms, attempt, lost

CLUSTER, CANCEL = "slurm", ("scancel",)  # `local` of submitit are processes of this machine, to try it
JOBS, MINUTES = 100, 60  # in the queue at a time; time limit of each
POLL = 1.0  # seconds between looks at a job


def start(where: Where, terms: Terms) -> Jobs:
    """The executor. Raises Unavailable if jobs cannot be submitted."""
    assert terms.folder is not None
    folder = terms.folder / "slurm"
    try:
        executor = submitit.AutoExecutor(folder, cluster=CLUSTER)
        job = {"name": "prune_env", "timeout_min": where.minutes or MINUTES, "slurm_partition": where.partition}
        executor.update_parameters(cpus_per_task=1, gpus_per_node=int(gpus_for(terms, where)) or None, **job)
        for path in folder.glob("*_submitted.pkl"):  # of a driver that was killed: its jobs would be at the same runs
            subprocess.run([*CANCEL, path.name.partition("_")[0]], stderr=subprocess.DEVNULL)  # some are over
            path.unlink()
    except (RuntimeError, FileNotFoundError) as error:
        raise _unavailable(error) from error
    return Jobs(executor, folder, where.workers or JOBS, terms)


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"{line_of(error)}; --engine slurm runs where sbatch accepts jobs")


class Jobs:
    """An executor: each job has a thread here, which waits for its end."""

    def __init__(self, executor: submitit.AutoExecutor, folder: Path, at_once: int, terms: Terms):
        self.at_once = at_once
        self._executor, self._folder, self._terms = executor, folder, terms
        self._lock = Lock()  # submitit is not made for threads
        self._closed = False
        self._threads = ThreadPoolExecutor(at_once)

    def submit(self, run: Run) -> Future[Outcome]:
        """As `Executor`."""
        return self._threads.submit(self._do, run)

    def _do(self, run: Run) -> Outcome:
        with self._lock, environment_variables(PYTHONPATH=import_path()):  # which jobs inherit
            try:
                job = self._executor.submit(_Job(), run, self._terms)
            except (RuntimeError, FileNotFoundError) as error:  # of sbatch
                raise _unavailable(error) from error
        ended = False
        while not ended and not self._closed:
            time.sleep(POLL)
            with self._lock:
                ended = job.done()
        with self._lock:
            if not ended:
                job.cancel(check=False)
                outcome = lost(run, self._terms, "")
            elif job.paths.result_pickle.exists() and job.exception() is None:
                outcome = job.result()
            else:
                outcome = lost(run, self._terms, job.stderr() or "")
        failed = isinstance(outcome, Failure)
        for path in self._folder.glob(f"{job.job_id}_*"):
            if not failed or path.suffix == ".pkl":  # logs may say why
                path.unlink()
        return outcome

    def close(self) -> None:
        """As `Executor`: jobs that are queued or running are cancelled."""
        self._closed = True
        self._threads.shutdown(cancel_futures=True)


class _Job(Checkpointable):
    """What a job does; one that reaches its time limit, or has to make room, is queued again with the same run."""

    def __call__(self, run: Run, terms: Terms) -> Outcome:
        torch.set_num_threads(1)
        return attempt(run, terms)
