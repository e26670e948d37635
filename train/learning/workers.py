"""Worker processes: each plays episodes, and holds one of the vector environments that a policy is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import Tasks
from train.execution import process
from train.learning.rollouts import Pair, Policy, Seen, play

DIED = "a process of the training environment died: out of memory, or ended"


class Died(BrokenProcessPool):
    """A process is gone."""


class Worker:
    """What is in a process."""

    def __init__(self, tasks: Tasks):
        self._tasks = tasks

    def play(self, pairs: Sequence[Pair], policy: Policy | NDArray) -> NDArray[np.float64]:
        """Return what `rollouts.play` does."""
        return play(pairs, policy, self._tasks)

    def watch(self, pairs: Sequence[Pair], policy: Policy | NDArray) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Play as `play` does; return which pair each step was of (s,), and the features before it (s, D)."""
        seen: Seen = []
        play(pairs, policy, self._tasks, seen_in=seen)
        of, features = zip(*seen, strict=True)
        return np.concatenate(of), np.concatenate(features)

    def build(self, make: Callable[[], VecEnv]) -> tuple[Any, ...]:
        """Build the training environment; return its size, observation space and action space."""
        self._env = make()
        return self._env.num_envs, self._env.observation_space, self._env.action_space

    def reset(self, seed: int | None) -> Any:
        """Reset the training environment."""
        if seed is not None:  # without a number, seed() draws one from a generator that nobody seeded
            self._env.seed(seed)
        return self._env.reset()

    def step(self, actions: NDArray) -> tuple[Any, ...]:
        """Step the training environment."""
        return self._env.step(actions)


class Workers:
    """Processes on this machine, of one thread each. What they return does not depend on their number."""

    def __init__(self, tasks: Tasks, count: int):
        self.count = count
        self._pools = [ProcessPoolExecutor(1, process.CONTEXT, _start, (tasks,)) for _ in range(count)]

    def call(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """Call a method of `Worker` in as many workers as there are tuples of arguments, at once.

        Raises:
            Died: a worker is gone.
            Exception: what the method raised.
        """
        try:
            futures = [pool.submit(_call, method, *its) for pool, its in zip(self._pools, arguments, strict=False)]
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise Died(DIED) from None

    def play(self, pairs: Sequence[Pair], policy: Policy | NDArray) -> NDArray[np.float64]:
        """Return what `rollouts.play` does."""
        accuracy = np.empty(len(pairs))
        for part, played in self._shared("play", pairs, policy):
            accuracy[part] = played
        return accuracy

    def watch(self, pairs: Sequence[Pair], policy: Policy | NDArray) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return what `Worker.watch` does, in another order."""
        of, features = zip(
            *((np.array(part)[of], seen) for part, (of, seen) in self._shared("watch", pairs, policy)), strict=True
        )
        return np.concatenate(of), np.concatenate(features)

    def _shared(self, method: str, pairs: Sequence[Pair], policy: Policy | NDArray) -> Iterator[tuple[range, Any]]:
        """Share pairs out among the workers; return the places of each one's, and what its method returned."""
        parts = [range(i, len(pairs), self.count) for i in range(min(self.count, len(pairs)))]
        rules = None if callable(policy) else np.broadcast_to(policy, (len(pairs), len(RULE_PARAMETERS)))
        arguments = [([pairs[i] for i in part], policy if rules is None else rules[part]) for part in parts]
        return zip(parts, self.call(method, arguments), strict=True)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


_worker: list[Worker] = []  # of a process


def _start(tasks: Tasks) -> None:
    process.start()
    _worker.append(Worker(tasks))


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_worker[0], method)(*arguments)
