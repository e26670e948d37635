"""Episodes for learning: pairs of task and seed, judged by the accuracy of a baseline on the same pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.sb3 import SB3VecEnv
from prune_env.policy.tasks import Task, TaskDistribution
from prune_env.policy.wrappers import vector_summary
from train.execution import toml

Pair = tuple[Task, int]  # what is trained on, and the seed of the run
# Rule parameters (K, R) from features (K, D) and which runs (K,) have just begun
Policy = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray]

CLIP = 10.0  # points, largest reward: one failed run must not outweigh all others
FULL = np.array([{"keep": 1.0, "mixup": -1.0}.get(name, 0.0) for name in RULE_PARAMETERS])


def distribution(name: str) -> TaskDistribution:
    """Return the distribution of this name, or with the arguments in the TOML file of this path.

    Raises:
        ValueError: there is none, or the file has other arguments.
        OSError: the file cannot be read.
    """
    if not name.endswith(".toml"):
        return TaskDistribution.named(name)
    try:
        return TaskDistribution(**toml.read(Path(name))[0])
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no distribution of tasks: {error}") from error


def draw_pairs(tasks: Sequence[Task], count: int, rng: np.random.Generator) -> list[Pair]:
    """Draw `count` pairs of a task, each equally likely, and a seed."""
    return [(tasks[int(rng.integers(len(tasks)))], int(rng.integers(2**31))) for _ in range(count)]


def make_env(members: int, tasks: TaskDistribution) -> VectorEnv:
    """Return a vector environment with features as observations and rule parameters as actions."""
    return vector_summary(members, dataset=tasks.training[0].dataset, tasks=tasks)


def play(
    pairs: Sequence[Pair], policy: Policy | NDArray, tasks: TaskDistribution, width: int = 64
) -> NDArray[np.float64]:
    """Return the final validation accuracy (P,) of a run of each pair.

    Args:
        pairs: P of them.
        policy: a policy, or the parameters of fixed rules, (R,) for all pairs or (P, R).
        tasks: the distribution of the pairs.
        width: how many runs go on at a time.
    """
    rules = None if callable(policy) else np.broadcast_to(policy, (len(pairs), len(RULE_PARAMETERS)))
    # the longest first: members without a pair left go on with an old one until the last is through
    waiting = sorted(range(len(pairs)), key=lambda i: pairs[i][0].budget)
    env = _kept_env(min(width, len(pairs)), tasks)
    accuracy = np.full(len(pairs), np.nan)
    at = np.array([waiting.pop() for _ in range(env.num_envs)])  # pair of each member
    begun = np.ones(env.num_envs, np.bool_)
    seen, _ = assign(env, begun, [pairs[i] for i in at])
    while np.isnan(accuracy).any():
        parameters = policy(seen, begun) if rules is None else rules[at]  # pyright: ignore[reportCallIssue]
        seen, _, done, _, infos = env.step(parameters)
        begun = done  # members without a pair left begin a step later, and nobody looks at them
        again = np.zeros(env.num_envs, np.bool_)
        for k in np.flatnonzero(done):
            if np.isnan(accuracy[at[k]]):
                accuracy[at[k]] = infos["val_accuracy"][k]
            if waiting:
                at[k], again[k] = waiting.pop(), True
        if again.any():
            seen, _ = assign(env, again, [pairs[i] for i in at])
    return accuracy


def _kept_env(members: int, tasks: TaskDistribution) -> VectorEnv:
    """Return the environment of the last `play` if it suits: making one takes as long as some episodes."""
    if _kept[:2] != [members, tasks]:
        _kept[:] = members, tasks, make_env(members, tasks)
    return _kept[2]


_kept: list[Any] = [0, None, None]


def assign(env: VectorEnv, mask: NDArray[np.bool_], pairs: Sequence[Pair]) -> tuple[NDArray, dict[str, Any]]:
    """Reset the members of the mask (K,) to their pairs, out of K pairs."""
    seeds, options = [seed for _, seed in pairs], {"task": [task for task, _ in pairs], "reset_mask": mask}
    return env.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]  (a list of seeds is allowed)


class Rollouts(VectorWrapper):
    """Episodes of pairs drawn from a pool. An episode's only reward comes at its end, in points over a baseline.

    The baseline is measured on the same task and seed, which removes most of the variance between episodes.

    Args:
        env: from `make_env`.
        pairs: the pool of P pairs.
        baseline: (P,) accuracy to compare with on each pair, from `play`.
    """

    def __init__(self, env: VectorEnv, pairs: Sequence[Pair], baseline: Sequence[float] | NDArray):
        super().__init__(env)
        self._pairs, self._baseline = pairs, np.array(baseline)
        self._rng = np.random.default_rng()
        self._at = np.zeros(env.num_envs, np.int64)  # pair of each member

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray, dict[str, Any]]:
        """Reset all members, or those of `options["reset_mask"]`, to new pairs; `seed` seeds the draws."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        self._at = np.where(mask, self._rng.integers(len(self._pairs), size=self.num_envs), self._at)
        return assign(self.env, mask, [self._pairs[i] for i in self._at])

    def step(self, actions: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step the inner env; the reward (K,) is this wrapper's."""
        seen, _, terminated, truncated, infos = self.env.step(np.clip(actions, -1.0, 1.0))
        points = np.zeros(self.num_envs)
        if terminated.any():
            over = 100.0 * (infos["val_accuracy"] - self._baseline[self._at])
            points[terminated] = np.clip(over[terminated], -CLIP, CLIP)
        return seen, points, terminated, truncated, {}


def training_env(tasks: TaskDistribution, members: int, pairs: Sequence[Pair], baseline: Sequence[float]) -> SB3VecEnv:
    """Return the environment that PPO trains on in one process, and seeds; see `Rollouts`."""
    return SB3VecEnv(Rollouts(make_env(members, tasks), pairs, baseline))
