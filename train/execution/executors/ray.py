"""A Ray cluster: a run is a task of one CPU, and of as many GPUs as it is given.

Workers import the code from the driver's paths, and keep checkpoints in the folder of results: on several nodes both
lie on a file system that they share, under the same path.
"""

from __future__ import annotations

import logging
import math
import os
from threading import Event

import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

from prune_env.machine import cores
from train.execution.agent import line_of
from train.execution.executors import OURS_FIRST, Executor, Outcome, Unavailable, Where, gpus_for, import_path
from train.execution.run import Failure, Run, Terms, attempt, lost

PATHS = ("PRUNE_ENV_DATA", "PRUNE_ENV_CACHE")  # which the workers shall use too
RETRIES = 3  # of a task whose worker or node is lost
POLL = 1.0  # seconds between looks whether nobody waits any more
LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)  # as often as that


def start(where: Where, terms: Terms, runs: int) -> Executor:
    """Connect to the cluster, or begin one that ends with this process.

    Raises:
        Unavailable: there is no cluster at the address, or none of its nodes could ever do a run.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told
    paths = {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PATHS if os.environ.get(name)}
    try:
        ray.init(
            where.address or "local",
            num_cpus=None if where.address else where.workers or cores(),
            include_dashboard=False,
            runtime_env={"env_vars": {**paths, "PYTHONPATH": import_path()}, "worker_process_setup_hook": OURS_FIRST},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # of many kinds
        raise Unavailable(
            f"no Ray cluster at --address {where.address}: {line_of(error)}; `ray status` there?"
        ) from error
    gpus = gpus_for(terms, where)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if all(node.get("CPU", 0) < 1 or node.get("GPU", 0) < gpus for node in nodes):
        ray.shutdown()
        raise Unavailable(f"no node of the Ray cluster has 1 CPU and {gpus:g} GPUs; --gpus-per-run asks for fewer")
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_do)

    stopped = Event()

    def do(run: Run) -> Outcome:
        answer = task.remote(run, terms)
        while not ray.wait([answer], timeout=POLL)[0]:
            if stopped.is_set():
                return lost(run, terms, "")
        try:
            return ray.get(answer)
        except LOST as error:
            return lost(run, terms, str(error))
        except RayError as error:  # what a worker cannot import, for one
            return Failure(run, line_of(getattr(error, "cause", error)), str(error))

    # beyond those that run, so that none has to wait for the driver, and a cluster that can grow sees what for
    room = where.workers or 2 * math.ceil(sum(node.get("CPU", 0) for node in nodes))
    return Executor(min(room, runs), do, stopped.set, ray.shutdown)


def _do(run: Run, terms: Terms) -> Outcome:
    torch.set_num_threads(1)
    return attempt(run, terms)
