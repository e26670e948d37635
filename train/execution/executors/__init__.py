"""Executors do runs somewhere: `submit(run)` gives a future of the record, or of the failure.

All do the same, `train.execution.run.attempt`, in some process, with the checkpoint in the folder of results. So
records do not depend on the executor, but for seconds and the machine's name.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from prune_env.checks import whole
from train.execution import torchrun
from train.execution.run import DIED, Failure, Outcome, Run, Terms


@dataclass
class Where:
    """Arguments that say what does the runs."""

    device: str = "auto"
    """Where to train: `auto` (CUDA where there is one), or a name torch knows."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """What does the runs: processes of this machine, a Ray cluster, or Slurm; see docs/scale.md."""
    workers: int | None = None
    """Runs at a time; by default one a core, one on CUDA, 100 jobs of Slurm, all that Ray takes. 0 is --debug."""
    debug: bool = False
    """Do the runs in this process, one after the other; the first error ends it, with its traceback."""
    address: str | None = None
    """With ray: of the cluster, `auto` or HOST:PORT; by default one is started on this machine, and ended."""
    gpus_per_run: float | None = None
    """With ray and slurm: GPUs that a run has to itself, with ray also a part of one; by default 1 on CUDA."""
    partition: str | None = None
    """With slurm: where jobs are queued; by default Slurm's choice."""
    minutes: int | None = None
    """With slurm: time limit of a job, 60 by default; a run that takes longer goes on in the next."""
    agent_timeout: float = 600.0
    """Seconds that an agent may take for one decision, or to be imported; one that takes longer loses its run."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints of a run, taken at the end of a step: what a kill can cost it, beside one step."""

    def __post_init__(self) -> None:
        if self.debug:
            self.workers = 0


ENGINES = {"address": ("ray",), "gpus_per_run": ("ray", "slurm"), "partition": ("slurm",), "minutes": ("slurm",)}

# What Ray's workers call as they start: our packages are imported before Ray puts the current folder in front of the
# paths, where a user's own train.py or agents.py may lie.
OURS_FIRST = "train.execution.executors.import_path"


class Unavailable(Exception):
    """An executor that cannot work here; one line, which says what to do."""


class Executor:
    """Does runs, each watched by a thread of this process.

    Args:
        size: runs at a time.
        do: does a run, and returns when it has ended. A run whose process, machine or job is lost is a `Failure` with
            `DIED`.
        stop: ends what is running, so that every `do` returns soon.
        end: called when every `do` has returned.
    """

    def __init__(
        self,
        size: int,
        do: Callable[[Run], Outcome],
        stop: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
    ):
        self._do, self._stop, self._end = do, stop, end
        self._threads = ThreadPoolExecutor(size)

    def submit(self, run: Run) -> Future[Outcome]:
        """Begin a run once there is room for it."""
        return self._threads.submit(self._do, run)

    def close(self) -> None:
        """End what is queued or running."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._stop()
        self._threads.shutdown()
        self._end()


def outcomes(executor: Executor, runs: Iterable[Run]) -> Generator[Outcome, None, None]:
    """Yield what each run came to, as it ends. Leaving the iteration closes the executor.

    A process that dies takes only its own run with it. Memory may have been short: at the very end that run is tried
    again, with nothing beside it, from its checkpoint on.
    """
    died: list[Run] = []
    with closing(executor):
        for future in as_completed([executor.submit(run) for run in runs]):
            outcome = future.result()
            if isinstance(outcome, Failure) and outcome.error == DIED:
                died.append(outcome.run)
            else:
                yield outcome
        for run in died:
            yield executor.submit(run).result()


def check(where: Where) -> None:
    """Raise ValueError or TypeError if the executor is not installed, or an option is for another, or wrong."""
    if torchrun.active() and (where.engine != "local" or where.workers is not None):
        raise ValueError("--engine and --workers are not for torchrun, whose processes train one student together")
    for option, engines in ENGINES.items():
        if getattr(where, option) is not None and where.engine not in engines:
            theirs = " or ".join(f"--engine {engine}" for engine in engines)
            raise ValueError(f"--{option.replace('_', '-')} needs {theirs}; the engine is {where.engine}")
    fewest = 0 if where.engine == "local" else 1
    for option, value, least in (("workers", where.workers, fewest), ("minutes", where.minutes, 1)):
        if value is not None and whole(f"--{option}", value) < least:
            raise ValueError(f"--{option} is {value}; it must be at least {least}")
    gpus = where.gpus_per_run or 0.0
    if not gpus >= 0 or (gpus % 1 and (gpus > 1 or where.engine == "slurm")):
        kind = "a whole number" if where.engine == "slurm" else "a part of one, or a whole number"
        raise ValueError(f"--gpus-per-run is {where.gpus_per_run}; it must be {kind}, 0 or more")
    _module(where.engine)


def start(where: Where, terms: Terms, runs: int) -> Executor:
    """Return the executor asked for, ready for so many runs. Raises Unavailable if it cannot work here."""
    return _module(where.engine).start(where, terms, runs)


def _module(engine: str) -> ModuleType:
    try:
        return importlib.import_module(f"train.execution.executors.{engine}")
    except ModuleNotFoundError as error:
        raise ValueError(f"--engine {engine} needs {error.name}: pip install -e '.[{engine}]'") from error


def gpus_for(terms: Terms, where: Where) -> float:
    """Return the number of GPUs that a run has to itself."""
    return where.gpus_per_run if where.gpus_per_run is not None else float(terms.device == "cuda")


def import_path() -> str:
    """Return the PYTHONPATH with which a process elsewhere imports what this one does, agents among it."""
    return os.pathsep.join(map(os.path.abspath, sys.path))
