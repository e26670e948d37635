"""Episodes for learning: pairs of task and seed, judged by the accuracy of a baseline on the same pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.wrappers.vector import ClipReward
from numpy.typing import NDArray

from prune_env.policy.paired import VectorPairedReward, start
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.sb3 import SB3VecEnv
from prune_env.policy.tasks import Task, Tasks
from prune_env.policy.tasks import distribution as of_name
from prune_env.policy.wrappers import vector_summary
from train.execution import toml

Pair = tuple[Task, int]  # what is trained on, and the seed of the run
# Rule parameters (K, R) from features (K, D) and which runs (K,) have just begun
Policy = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray]

CLIP = 10.0  # points, largest reward: one failed run must not outweigh all others


def distribution(name: str, roots: Sequence[str] = ()) -> Tasks:
    """Return the distribution of this name, or with the arguments in the TOML file of this path.

    Args:
        name: as `tasks.distribution` takes it, or a path that ends in .toml.
        roots: folders of images, for tasks of image folders.

    Raises:
        ValueError: there is none, the file has other arguments, or there are no tasks for `roots`.
        OSError: the file cannot be read.
    """
    if not name.endswith(".toml"):
        return of_name(name, roots)
    try:
        return of_name(toml.read(Path(name))[0], roots)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no distribution of tasks: {error}") from error


def draw_pairs(tasks: Tasks, count: int, rng: np.random.Generator) -> list[Pair]:
    """Draw `count` pairs of a training task and a seed."""
    return [(tasks.draw(rng), int(rng.integers(2**31))) for _ in range(count)]


def make_env(members: int, tasks: Tasks) -> VectorEnv:
    """Return a vector environment with features as observations and rule parameters as actions."""
    return vector_summary(members, dataset=tasks.training[0].dataset, tasks=tasks)


def play(pairs: Sequence[Pair], policy: Policy | NDArray, tasks: Tasks, width: int = 64) -> NDArray[np.float64]:
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
    seen, _ = start(env, begun, [pairs[i] for i in at])
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
            seen, _ = start(env, again, [pairs[i] for i in at])
    return accuracy


def _kept_env(members: int, tasks: Tasks) -> VectorEnv:
    """Return the environment of the last `play` if it suits: making one takes as long as some episodes."""
    if _kept[:2] != [members, tasks]:
        _kept[:] = members, tasks, make_env(members, tasks)
    return _kept[2]


_kept: list[Any] = [0, None, None]


def training_env(tasks: Tasks, members: int, pairs: Sequence[Pair], baseline: Sequence[float]) -> SB3VecEnv:
    """Return the environment that PPO trains on in one process: the pool of pairs, and the accuracy to beat on each."""
    paired = VectorPairedReward(make_env(members, tasks), pool=dict(zip(pairs, baseline, strict=True)))
    return SB3VecEnv(ClipReward(paired, -CLIP, CLIP))
