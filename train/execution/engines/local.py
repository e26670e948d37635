"""Processes of this machine, one a core on the CPU, and one on CUDA."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from prune_env.machine import cores
from train.execution import workers
from train.execution.engines import Where
from train.execution.episode import Run
from train.execution.results import Record
from train.execution.workers import Failure, Terms


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`."""
    size = where.workers or (1 if terms.device == "cuda" else cores())
    return workers.outcomes(runs, min(size, len(runs)), terms)
