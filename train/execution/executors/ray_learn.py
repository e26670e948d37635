"""Episodes for learning on a Ray cluster: what `train.learn` has in processes, in actors and tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from prune_env.policy.tasks import TaskDistribution
from train.execution.agent import line_of
from train.execution.executors.ray import LOST, RETRIES
from train.learning import rollouts as practice
from train.learning import subproc_env as shards
from train.learning.subproc_env import DIED, Died

PAUSE = 2.0  # seconds; after a driver was killed Ray cancels what the next one has begun, for a moment


class Shards(shards.Shards):
    """`train.learning.subproc_env.Shards` in actors, of one CPU each."""

    def _start(self, make: Callable[[], VecEnv]) -> shards.Pipe:
        return _Line(make)


class _Line:
    """An actor, as the connection to a process."""

    def __init__(self, make: Callable[[], VecEnv]):
        self._make = make
        self._tries = 1 + RETRIES
        self._build()

    def _build(self) -> None:
        self._tries -= 1
        self._actor: Any = ray.remote(num_cpus=1)(_Shard).remote(self._make)
        self.send(("build", None))

    def send(self, message: tuple[str, Any], /) -> None:
        self._building = message[0] == "build"
        self._answer = self._actor.answer.remote(*message)

    def recv(self) -> Any:
        try:
            return ray.get(self._answer)
        except RayTaskError as error:
            return error.cause
        except RayActorError as error:
            if self._building and self._tries:  # it had nothing to lose yet
                time.sleep(PAUSE)
                self._build()
                return self.recv()
            raise Died(f"{DIED}; {line_of(error)}") from None

    def close(self) -> None:
        ray.kill(self._actor)


class _Shard(shards.Shard):
    def __init__(self, make: Callable[[], VecEnv]):
        torch.set_num_threads(1)
        super().__init__(make)


class Players(practice.Players):
    """`train.learning.rollouts.Players` in tasks; they take no CPU, as they run while the actors of `Shards` wait."""

    def __init__(self, tasks: TaskDistribution, processes: int):
        self._tasks, self._count = tasks, processes

    def _play(self, parts: list[tuple[Any, ...]]) -> list[NDArray[np.float64]]:
        task = ray.remote(num_cpus=0, max_retries=RETRIES, scheduling_strategy="SPREAD")(_play)
        try:
            return ray.get([task.remote(*part) for part in parts])
        except LOST:
            raise Died(DIED) from None

    def close(self) -> None: ...


def _play(*part: Any) -> NDArray[np.float64]:
    torch.set_num_threads(1)
    return practice.play(*part)
