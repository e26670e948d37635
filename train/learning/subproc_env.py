"""A Stable-Baselines3 environment whose members live in several processes, many in each.

SB3's own `SubprocVecEnv` has one member a process, and these members train in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn

from train.learning.workers import Workers


class ProcessVecEnv(VecEnv):
    """Several vector environments as one, each in a worker. Exceptions in a worker are raised here.

    Args:
        workers: as many as makers, or more.
        makers: build each environment; they have to be pickled.

    Attributes:
        episodes: how many have ended.
    """

    def __init__(self, workers: Workers, makers: Sequence[Callable[[], VecEnv]]):
        self.episodes = 0
        self._workers = workers
        sizes, observations, actions = zip(*workers.call("build", [(make,) for make in makers]), strict=True)
        self._ends = np.cumsum(sizes)[:-1]
        super().__init__(sum(sizes), observations[0], actions[0])

    def reset(self) -> VecEnvObs:
        """Start an episode in every member, with the seeds that `seed` gave."""
        seeds = [part[0] for part in np.split(np.array(self._seeds, object), self._ends)]
        self._reset_seeds()
        return np.concatenate(self._workers.call("reset", [(seed,) for seed in seeds]))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (K, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every member."""
        parts = [(part,) for part in np.split(self._actions, self._ends)]
        seen, rewards, dones, infos = zip(*self._workers.call("step", parts), strict=True)
        self.episodes += sum(int(np.count_nonzero(part)) for part in dones)
        return np.concatenate(seen), np.concatenate(rewards), np.concatenate(dones), [i for part in infos for i in part]

    def close(self) -> None:
        """Leave the workers, which others use too."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for every member: SB3 asks for the render mode alone."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("members are in other processes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("members are in other processes")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
