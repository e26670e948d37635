"""Processes of this machine, one a core on the CPU, and one on CUDA."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from prune_env.residence import cores
from train import workers
from train.engines import Where
from train.episode import Run
from train.results import Record
from train.workers import Failure, Terms


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`."""
    size = where.workers or (1 if terms.device == "cuda" else cores())
    return workers.outcomes(runs, min(size, len(runs)), terms)
