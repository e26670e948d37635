"""A Ray cluster: a run is a task of one CPU, and of as many GPUs as it is given.

Workers import the code from where the driver does, and keep checkpoints in the folder of results: on several nodes
both lie on a file system that they share, under the same path.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

from prune_env.machine import cores
from train.execution.agent import line_of
from train.execution.executors import Outcome, Unavailable, Where, gpus_for, import_path
from train.execution.run import Failure, Run, Terms, attempt, lost

PATHS = ("PRUNE_ENV_DATA", "PRUNE_ENV_CACHE")  # which the workers shall use too
RETRIES = 3  # of a task whose worker or node is lost
LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)  # as often as that


def start(where: Where, terms: Terms) -> Tasks:
    """The executor. Raises Unavailable without a cluster, or one whose nodes could never do a run."""
    gpus = gpus_for(terms, where)
    with ExitStack() as stack:
        resources = stack.enter_context(connected(where.address, where.workers or cores()))
        if all(node.get("CPU", 0) < 1 or node.get("GPU", 0) < gpus for node in resources):
            raise Unavailable(f"no node of the Ray cluster has 1 CPU and {gpus:g} GPUs; --gpus-per-run asks for fewer")
        # beyond those that run, so that none has to wait for the driver, and a cluster that can grow sees what for
        room = where.workers or 2 * math.ceil(sum(node.get("CPU", 0) for node in resources))
        return Tasks(room, gpus, terms, stack.pop_all())


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


class Tasks:
    """An executor."""

    def __init__(self, at_once: int, gpus: float, terms: Terms, connection: ExitStack):
        self.at_once = at_once
        self._terms, self._connection = terms, connection
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_do)

    def submit(self, run: Run) -> Future[Outcome]:
        """As `Executor`."""
        outcome: Future[Outcome] = Future()

        def told(answer: Future[Outcome]) -> None:
            try:
                outcome.set_result(answer.result())
            except LOST as error:
                outcome.set_result(lost(run, self._terms, str(error)))
            except RayError as error:  # what a worker cannot import, for one
                outcome.set_result(Failure(run, line_of(getattr(error, "cause", error)), str(error)))

        self._task.remote(run, self._terms).future().add_done_callback(told)
        return outcome

    def close(self) -> None:
        """As `Executor`."""
        self._connection.close()


def _do(run: Run, terms: Terms) -> Outcome:
    torch.set_num_threads(1)
    return attempt(run, terms)
