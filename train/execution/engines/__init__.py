"""Engines do runs: each is a file here with `outcomes`, an `Engine`; programs know nothing else of them.

All do the same: `train.execution.workers.attempt` for each run, in some process, with its checkpoints in the folder of
results. So records do not depend on the engine, but for seconds and the machine's name.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from train.execution.episode import Run
from train.execution.results import Record
from train.execution.workers import Failure, Terms


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


# Yields what each run, given by its key, came to, in any order; closing it ends what is still running. A run that a
# dead process, machine or job has lost is done again; only if that fails too it is a `Failure` with `DIED`.
Engine = Callable[[Mapping[str, Run], Terms, Where], Generator[Record | Failure, None, None]]

OPTIONS = {"local": (), "ray": ("address", "gpus_per_run"), "slurm": ("gpus_per_run", "partition", "minutes")}


class Unavailable(Exception):
    """An engine that cannot work here; one line, which says what to do."""


def gpus_for(terms: Terms, where: Where) -> float:
    """That a run has to itself."""
    return where.gpus_per_run if where.gpus_per_run is not None else float(terms.device == "cuda")


def import_path() -> str:
    """PYTHONPATH with which a process elsewhere imports what this one does: agents too lie outside of packages."""
    return os.pathsep.join(map(os.path.abspath, sys.path))


def module(name: str, engine: str) -> ModuleType:
    """Import the module NAME of this package; raise ValueError if the extra called `engine` is not installed."""
    try:
        return importlib.import_module(f"train.execution.engines.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"--engine {engine} needs {error.name}: pip install -e '.[{engine}]'") from error


def by_torchrun() -> bool:
    """Whether this process is one of those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def find(where: Where) -> Engine:
    """The engine asked for; raises ValueError if it is not installed, or given what is for another, or wrong."""
    if by_torchrun():
        if where.engine != "local" or where.workers is not None:
            raise ValueError("--engine and --workers are not for torchrun, whose processes train one student together")
        return importlib.import_module("train.execution.engines.ranks").outcomes
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
    return module(where.engine, where.engine).outcomes
