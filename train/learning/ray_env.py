"""Training environments and episodes on a Ray cluster: actors and tasks in place of processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError, RayTaskError
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from prune_env.policy.tasks import TaskDistribution
from train.learning import rollouts, subproc_env
from train.learning.subproc_env import DIED, Died

PATHS = ("PRUNE_ENV_DATA", "PRUNE_ENV_CACHE")  # which the cluster's processes use too


@contextmanager
def cluster(given: Any) -> Iterator[None]:
    """Connect to the cluster at `given.address`, or start one. Raises ConnectionError without one of enough CPUs."""
    paths = {name: os.path.abspath(os.path.expanduser(os.environ[name])) for name in PATHS if os.environ.get(name)}
    paths["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(
            given.address or "local",
            num_cpus=None if given.address else given.processes,
            include_dashboard=False,
            runtime_env={"env_vars": paths},
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


class RayVecEnv(subproc_env.ProcessVecEnv):
    """`ProcessVecEnv` in actors of one CPU each."""

    def _start(self, make: Callable[[], VecEnv]) -> subproc_env.Pipe:
        return _Line(make)


class _Line:
    """An actor, with the methods of a connection to a process."""

    def __init__(self, make: Callable[[], VecEnv]):
        self._actor: Any = ray.remote(num_cpus=1)(_Server).remote(make)
        self.send(("build", None))

    def send(self, message: tuple[str, Any], /) -> None:
        self._answer = self._actor.answer.remote(*message)

    def recv(self) -> Any:
        try:
            return ray.get(self._answer)
        except RayTaskError as error:
            return error.cause
        except RayActorError as error:
            raise Died(f"{DIED}; {error}") from None

    def close(self) -> None:
        ray.kill(self._actor)


class _Server(subproc_env.Server):
    def __init__(self, make: Callable[[], VecEnv]):
        torch.set_num_threads(1)
        super().__init__(make)


class RayPlayers(rollouts.Players):
    """`Players` in tasks, which take no CPU, since they run while the actors of `RayVecEnv` wait."""

    def __init__(self, tasks: TaskDistribution, processes: int):
        self._tasks, self._count = tasks, processes

    def _play(self, parts: list[tuple[Any, ...]]) -> list[NDArray[np.float64]]:
        task: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(_play)
        try:
            return ray.get([task.remote(*part, self._tasks) for part in parts])
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise Died(f"{DIED}; {error}") from None

    def close(self) -> None: ...


def _play(*part: Any) -> NDArray[np.float64]:
    torch.set_num_threads(1)
    return rollouts.play(*part)
