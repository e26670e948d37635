"""Workers on a Ray cluster: actors in place of processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from prune_env.policy.tasks import Tasks
from train.execution.executors import OURS_FIRST, import_path
from train.learning.workers import DIED, Died, Worker, Workers

PATHS = ("PRUNE_ENV_DATA", "PRUNE_ENV_CACHE")  # which the cluster's processes use too


@contextmanager
def cluster(given: Any) -> Iterator[None]:
    """Connect to the cluster at `given.address`, or start one. Raises ConnectionError without one of enough CPUs."""
    paths = {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PATHS if os.environ.get(name)}
    paths["PYTHONPATH"] = import_path()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(
            given.address or "local",
            num_cpus=None if given.address else given.processes,
            include_dashboard=False,
            runtime_env={"env_vars": paths, "worker_process_setup_hook": OURS_FIRST},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # of many kinds
        raise ConnectionError(f"no Ray cluster at --address {given.address}: {error}; `ray status` there?") from error
    try:
        cpus = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if cpus < given.processes:
            raise ConnectionError(f"--processes is {given.processes}, but the Ray cluster has {cpus:g} CPUs")
        yield
    finally:
        ray.shutdown()


class RayWorkers(Workers):
    """`Workers` in actors of one CPU each."""

    def __init__(self, tasks: Tasks, count: int):
        self.count = count
        actor: Any = ray.remote(num_cpus=1)(_Actor)
        self._actors = [actor.remote(tasks) for _ in range(count)]

    def call(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        calls = [getattr(actor, method) for actor in self._actors]
        try:
            return ray.get([call.remote(*its) for call, its in zip(calls, arguments, strict=False)])
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise Died(f"{DIED}; {error}") from None

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


class _Actor(Worker):
    def __init__(self, tasks: Tasks):
        torch.set_num_threads(1)
        super().__init__(tasks)
