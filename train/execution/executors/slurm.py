"""Slurm, through submitit: a run is a job. All that jobs need and leave is in the folder `slurm` of the results."""

from __future__ import annotations

import subprocess
import time
from threading import Event, Lock

import submitit
import torch
from submitit.helpers import Checkpointable, environment_variables

from train.execution.agent import line_of
from train.execution.executors import Executor, Outcome, Unavailable, Where, gpus_for, import_path
from train.execution.run import Failure, Run, Terms, attempt, lost

CLUSTER, CANCEL = "slurm", ("scancel",)  # `local` of submitit are processes of this machine, to try it
JOBS, MINUTES = 100, 60  # in the queue at a time; time limit of each
POLL = 1.0  # seconds between looks at a job


def start(where: Where, terms: Terms, runs: int) -> Executor:
    """Return the executor. Raises Unavailable if jobs cannot be submitted."""
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
    lock, stopped = Lock(), Event()  # submitit is not made for threads

    def do(run: Run) -> Outcome:
        # jobs inherit these; a job is `python -m`, which else looks for modules in the current folder first
        with lock, environment_variables(PYTHONPATH=import_path(), PYTHONSAFEPATH="1"):
            try:
                job = executor.submit(_Job(), run, terms)
            except (RuntimeError, FileNotFoundError) as error:  # of sbatch
                raise _unavailable(error) from error
        ended = False
        while not ended and not stopped.is_set():
            time.sleep(POLL)
            with lock:
                ended = job.done()
        with lock:
            if not ended:
                job.cancel(check=False)
                outcome = lost(run, terms, "")
            elif job.paths.result_pickle.exists() and job.exception() is None:
                outcome = job.result()
            else:
                outcome = lost(run, terms, job.stderr() or "")
        for path in folder.glob(f"{job.job_id}_*"):
            if not isinstance(outcome, Failure) or path.suffix == ".pkl":  # logs may say why it failed
                path.unlink()
        return outcome

    return Executor(min(where.workers or JOBS, runs), do, stopped.set)


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"{line_of(error)}; --engine slurm runs where sbatch accepts jobs")


class _Job(Checkpointable):
    """What a job does; one that reaches its time limit, or has to make room, is queued again with the same run."""

    def __call__(self, run: Run, terms: Terms) -> Outcome:
        torch.set_num_threads(1)
        return attempt(run, terms)
