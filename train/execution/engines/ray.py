"""A Ray cluster: a run is a task of one CPU, and of as many GPUs as it is given.

Workers import the code from where the driver does, and keep checkpoints in the folder of results: on several nodes
both lie on a file system that they share, under the same path.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

import train
from prune_env.machine import cores
from train.execution import workers
from train.execution.companion import line_of
from train.execution.engines import Unavailable, Where, gpus_for, import_path
from train.execution.episode import Run
from train.execution.results import Record
from train.execution.workers import DIED, Failure, Terms

PATHS = ("PRUNE_ENV_DATA", "PRUNE_ENV_CACHE")  # which the workers shall use too
RETRIES = 3  # of a task whose worker or node is lost
LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)  # as often as that


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`. Raises Unavailable without a cluster, or one whose nodes could never do a run."""
    gpus = gpus_for(terms, where)
    with connected(where.address, where.workers or cores()) as resources:
        if all(node.get("CPU", 0) < 1 or node.get("GPU", 0) < gpus for node in resources):
            raise Unavailable(f"no node of the Ray cluster has 1 CPU and {gpus:g} GPUs; --gpus-per-run asks for fewer")
        # beyond those that run, so that none has to wait for the driver, and a cluster that can grow sees what for
        room = where.workers or 2 * math.ceil(sum(node.get("CPU", 0) for node in resources))
        yield from workers.with_second_try(partial(_in_tasks, terms, gpus), runs, room)


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[list[dict[str, float]]]:
    """Be a driver of the cluster at this address, or of one of our own with so many CPUs; gives its nodes' resources.

    At the end, or with this process, everything ends that the cluster does for it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told
    paths = {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PATHS if os.environ.get(name)}
    try:
        ray.init(
            address or "local",
            num_cpus=None if address else cpus,
            include_dashboard=False,
            runtime_env={"env_vars": {**paths, "PYTHONPATH": import_path()}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # of many kinds
        raise Unavailable(f"no Ray cluster at --address {address}: {line_of(error)}; `ray status` there?") from error
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _in_tasks(terms: Terms, gpus: float, runs: Mapping[str, Run], size: int) -> Generator[Record | Failure, None, None]:
    """Outcomes of `runs`, at most `size` given to the cluster at a time."""
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_do)
    waiting, given = deque(runs.items()), {}
    while waiting or given:
        while waiting and len(given) < size:
            key, run = waiting.popleft()
            given[task.remote(key, run, terms)] = key, run
        (ready, *_), _ = ray.wait(list(given))
        key, run = given.pop(ready)
        try:
            outcome = ray.get(ready)
        except LOST as error:
            outcome = Failure(key, run, DIED, str(error))
        except RayError as error:  # what a worker cannot import, for one
            outcome = Failure(key, run, line_of(getattr(error, "cause", error)), str(error))
        yield outcome


def _do(key: str, run: Run, terms: Terms) -> Record | Failure:
    # every agent's process begins with the main file of its parent, and that of Ray's workers would import Ray
    sys.modules["__main__"].__file__ = train.__file__
    return workers.alone(key, run, terms)
