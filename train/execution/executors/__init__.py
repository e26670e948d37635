"""Executors do runs somewhere: `submit(run)` gives a future of the record, or of the failure.

All do the same, `train.execution.run.attempt`, in some process, with the checkpoint in the folder of results. So
records do not depend on the executor, but for seconds and the machine's name.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Protocol

from train.execution.results import Record
from train.execution.run import DIED, Failure, Run, Terms

Outcome = Record | Failure


@dataclass
class Where:
    """Arguments that say what does the runs."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """What does the runs: processes of this machine, a Ray cluster, or Slurm; see docs/scale.md."""
    workers: int | None = None
    """Runs at a time; by default one a core on the CPU, and one on CUDA; on a cluster as many as it takes, with slurm
    100 jobs."""
    address: str | None = None
    """With ray: of the cluster, `auto` or HOST:PORT; by default one is started on this machine, and ended."""
    gpus_per_run: float | None = None
    """With ray and slurm: GPUs that a run has to itself, with ray also a part of one; by default 1 on CUDA."""
    partition: str | None = None
    """With slurm: where jobs are queued; by default Slurm's choice."""
    minutes: int | None = None
    """With slurm: time limit of a job, 60 by default; a run that takes longer goes on in the next."""


class Executor(Protocol):
    """Does runs, at most `at_once` of them at a time."""

    at_once: int

    def submit(self, run: Run) -> Future[Outcome]:
        """Begin a run. One whose process, machine or job is lost is a `Failure` with `DIED`."""
        ...

    def close(self) -> None:
        """End what is still running."""
        ...


class Unavailable(Exception):
    """An executor that cannot work here; one line, which says what to do."""


OPTIONS = {"local": (), "ray": ("address", "gpus_per_run"), "slurm": ("gpus_per_run", "partition", "minutes")}


def outcomes(executor: Executor, runs: Iterable[Run]) -> Generator[Outcome, None, None]:
    """Yield what each run came to, as it ends. Leaving the iteration closes the executor.

    A process that dies takes only its own run with it. Memory may have been short: at the very end that run is tried
    again, with nothing beside it, from its checkpoint on.
    """
    died: list[Run] = []
    with closing(executor):
        for outcome in _as_they_end(executor, runs, executor.at_once):
            if isinstance(outcome, Failure) and outcome.error == DIED:
                died.append(outcome.run)
            else:
                yield outcome
        yield from _as_they_end(executor, died, 1)


def _as_they_end(executor: Executor, runs: Iterable[Run], at_once: int) -> Generator[Outcome, None, None]:
    waiting, running = deque(runs), set[Future[Outcome]]()

    def fill() -> None:
        while waiting and len(running) < at_once:
            running.add(executor.submit(waiting.popleft()))

    fill()
    while running:
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        fill()  # before whoever asks writes a record down
        for future in ended:
            yield future.result()


def check(where: Where) -> None:
    """Raise ValueError if the executor asked for is not installed, or given what is for another, or wrong."""
    if by_torchrun() and (where.engine != "local" or where.workers is not None):
        raise ValueError("--engine and --workers are not for torchrun, whose processes train one student together")
    for option in ("address", "gpus_per_run", "partition", "minutes"):
        if getattr(where, option) is not None and option not in OPTIONS[where.engine]:
            theirs = " or ".join(f"--engine {name}" for name, options in OPTIONS.items() if option in options)
            raise ValueError(f"--{option.replace('_', '-')} needs {theirs}; the engine is {where.engine}")
    if where.workers is not None and where.workers < 1:
        raise ValueError(f"--workers is {where.workers}; it must be at least 1")
    if where.minutes is not None and where.minutes < 1:
        raise ValueError(f"--minutes is {where.minutes}; it must be at least 1")
    gpus = where.gpus_per_run or 0.0
    if not gpus >= 0 or (gpus % 1 and (gpus > 1 or where.engine == "slurm")):
        whole = "a whole number" if where.engine == "slurm" else "a part of one, or a whole number"
        raise ValueError(f"--gpus-per-run is {where.gpus_per_run}; it must be {whole}, 0 or more")
    if where.engine != "local":
        module(where.engine, where.engine)


def start(where: Where, terms: Terms, runs: int) -> Executor:
    """Return the executor asked for, ready for so many runs. Raises Unavailable if it cannot work here."""
    if where.engine != "local":
        return module(where.engine, where.engine).start(where, terms)
    from train.execution.executors import local

    return local.start(where, terms, runs)


def module(name: str, engine: str) -> ModuleType:
    """Import the module NAME of this package; raise ValueError if the extra called `engine` is not installed."""
    try:
        return importlib.import_module(f"train.execution.executors.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"--engine {engine} needs {error.name}: pip install -e '.[{engine}]'") from error


def gpus_for(terms: Terms, where: Where) -> float:
    """GPUs that a run has to itself."""
    return where.gpus_per_run if where.gpus_per_run is not None else float(terms.device == "cuda")


def import_path() -> str:
    """PYTHONPATH with which a process elsewhere imports what this one does: agents too lie outside of packages."""
    return os.pathsep.join(map(os.path.abspath, sys.path))


def by_torchrun() -> bool:
    """Whether this process is one of those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ
