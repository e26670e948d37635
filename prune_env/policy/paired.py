"""A reward to learn from: how far a run ends above a baseline's run on the same task and seed.

The environment's own reward sums to nearly the same for every policy, and it differs more between seeds than between
policies. The difference to a baseline that had the same task, initial weights, order and augmentation does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import ArrayLike, NDArray

from prune_env import memory, selection
from prune_env.env import PruneEnv
from prune_env.policy.rules import FULL, apply_rule, draw_uniform
from prune_env.policy.tasks import Task, TaskEnv
from prune_env.policy.vector import PruneVectorEnv
from prune_env.policy.wrappers import RULE_STREAM, Action, Agent, Bools, Observation, Options
from prune_env.students.batched_mlp import train_epochs
from prune_env.trainer import Trainer

Pair = tuple[Task | None, int]  # what `reset` is told: the task, None for one that follows from the seed; and the seed
Pool = Iterable[int | Pair] | Mapping[Any, float]


class PairedReward(gym.Wrapper, RecordConstructorArgs):
    """Pays points over a baseline at the end of an episode, and 0 before.

    A point is one percent of validation accuracy. The baseline trains on the same task and seed. It plays once for each
    episode, or for each member of a `pool`, and nothing is charged for it.

    Args:
        env: a `PruneEnv`, `TaskEnv` or `SummaryEnv`, in any wrappers.
        baseline: an agent `(observation, rng) -> action`, or R rule parameters; by default full training. Every run of
            the baseline has a copy of the agent.
        pool: draw each episode from these seeds, or pairs of a task and a seed, so that the baseline plays each one
            once. A mapping gives the accuracy that the baseline reaches on each pair. `reset(seed=...)` seeds the
            draws then. Without a pool it seeds the episode, as it does without this wrapper.

    Raises:
        TypeError: `env` is another environment.
        ValueError: `baseline` is neither an agent nor R numbers.
    """

    def __init__(self, env: gym.Env, baseline: Agent | ArrayLike | None = None, pool: Pool | None = None):
        RecordConstructorArgs.__init__(self, baseline=baseline, pool=pool, _disable_deepcopy=True)
        gym.Wrapper.__init__(self, env)
        _require(env.unwrapped, PruneEnv | TaskEnv)
        self._paired = _Paired(baseline, pool, 1)

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode. Raises ValueError for options beside a pool."""
        if self._paired.pool is not None:
            ((task, seed),) = self._paired.draw(np.array([True]), seed, options or {})
            options = None if task is None else {"task": task}
        seen, info = self.env.reset(seed=seed, options=options)
        self._paired.begin(np.array([True]))
        return seen, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the inner env; the reward is this wrapper's."""
        seen, _, terminated, truncated, info = self.env.step(action)
        inner: Any = self.unwrapped
        run = inner.env if isinstance(inner, TaskEnv) else inner
        over = np.array([terminated or truncated])
        points = self._paired.points(over, np.array([info["val_accuracy"]]), [run], np.array([info["seed"]]))
        return seen, float(points[0]), terminated, truncated, info


class VectorPairedReward(VectorWrapper):
    """`PairedReward` of K runs: rewards (K,). Several runs of the baseline train in one batch.

    A member's reward equals the one of `PairedReward` up to the rounding of batches.

    Args:
        env: a `PruneVectorEnv` or `vector_summary`, in any wrappers.
        baseline, pool: as for `PairedReward`.

    Raises:
        TypeError, ValueError: as for `PairedReward`.
    """

    def __init__(self, env: VectorEnv, baseline: Agent | ArrayLike | None = None, pool: Pool | None = None):
        super().__init__(env)
        _require(env.unwrapped, PruneVectorEnv)
        self._paired = _Paired(baseline, pool, env.num_envs)

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episodes, all or those of `options["reset_mask"]`. Beside a pool there is no other option."""
        options = dict(options or {})
        mask = options.get("reset_mask", np.ones(self.num_envs, np.bool_))
        if self._paired.pool is None:
            seen, infos = self.env.reset(seed=seed, options=options)
        else:
            seen, infos = start(self.env, mask, self._paired.draw(mask, seed, options))
        self._paired.begin(mask)
        return seen, infos

    def step(self, actions: Any) -> tuple[Any, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step the inner env; the rewards (K,) are this wrapper's."""
        seen, _, terminated, truncated, infos = self.env.step(actions)
        begun = infos["step"] == 0  # members that were over, and that the inner env has reset to what follows for it
        if begun.any():
            if self._paired.pool is not None:
                seen, others = start(self.env, begun, self._paired.draw(begun))
                infos = {name: np.where(begun, others[name], values) for name, values in infos.items()}
            self._paired.begin(begun)
        runs = self.unwrapped.envs  # pyright: ignore[reportAttributeAccessIssue]
        points = self._paired.points(terminated | truncated, infos["val_accuracy"], runs, infos["seed"])
        return seen, points, terminated, truncated, infos


class _Paired:
    """What a baseline reaches beside K runs, and the pool that their episodes are drawn from."""

    def __init__(self, baseline: Agent | ArrayLike | None, pool: Pool | None, count: int):
        self._agent = baseline if callable(baseline) else _rule(FULL if baseline is None else baseline)
        self._accuracy = np.full(count, np.nan)  # of the baseline beside each run, NaN until it has played
        self.pool: list[Pair] | None = None
        self._known = np.array([])  # (P,) accuracy of the baseline on each pair of the pool
        if pool is not None:
            self.pool = [pair if isinstance(pair, tuple) else (None, pair) for pair in pool]
            self._known = np.array(list(pool.values()) if isinstance(pool, Mapping) else [np.nan] * len(self.pool))
        self._at = np.zeros(count, np.int64)  # each run's pair in the pool
        self._rng = np.random.default_rng()

    def draw(self, mask: Bools, seed: Any = None, options: Mapping[str, Any] | None = None) -> list[Pair]:
        """Draw new pairs for the runs of the mask (K,); return the K pairs."""
        assert self.pool is not None
        if others := set(options or {}) - {"reset_mask"}:
            raise ValueError(f"reset options {sorted(others)} cannot be given beside a pool, which says what is played")
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._at = np.where(mask, self._rng.integers(len(self.pool), size=len(self._at)), self._at)
        return [self.pool[i] for i in self._at]

    def begin(self, mask: Bools) -> None:
        """Take note that the runs of the mask (K,) have begun."""
        self._accuracy[mask] = np.nan if self.pool is None else self._known[self._at[mask]]

    def points(self, over: Bools, reached: NDArray, runs: Sequence[PruneEnv], seeds: NDArray) -> NDArray[np.float64]:
        """Return points (K,), 0 where a run is not over.

        Args:
            over: (K,) whether each run is over.
            reached: (K,) validation accuracy.
            runs: K environments.
            seeds: (K,) of the runs, as infos have them.
        """
        missing = np.flatnonzero(np.isnan(self._accuracy)).tolist()
        if over[missing].any():  # of all runs, since many train in the time of a few
            self._accuracy[missing] = _play([runs[k] for k in missing], seeds[missing].tolist(), self._agent)
            if self.pool is not None:
                self._known[self._at] = self._accuracy
        return np.where(over, 100.0 * (reached - self._accuracy), 0.0)


def start(env: VectorEnv, mask: Bools, pairs: Sequence[Pair]) -> tuple[Any, dict[str, Any]]:
    """Reset the members of the mask (K,) to their pairs, out of K pairs."""
    seeds, options = [seed for _, seed in pairs], {"task": [task for task, _ in pairs], "reset_mask": mask}
    return env.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]  (a list of seeds is allowed)


def _play(runs: Sequence[PruneEnv], seeds: Sequence[int], agent: Agent) -> list[float]:
    """Return the validation accuracy that an agent ends with on each run's task and seed. The runs are left alone."""
    trainers = [
        Trainer(run.train_data, run.val_data, run.recipe, run.budget, seed)
        for run, seed in zip(runs, seeds, strict=True)
    ]
    labels = [run.train_data.labels.cpu().numpy() for run in runs]
    agents = [deepcopy(agent) for _ in runs]
    generators = [np.random.default_rng([seed, RULE_STREAM]) for seed in seeds]
    for one in agents:
        memory.reset(one)
    going = list(range(len(runs)))
    while going:
        chosen = []
        for k in going:
            action = agents[k]({**trainers[k].observe(), "label": labels[k].copy()}, generators[k])
            chosen.append(trainers[k].select(selection.check(action, len(labels[k]))))
        results = train_epochs([trainers[k] for k in going], chosen)
        going = [k for k, result in zip(going, results, strict=True) if not result.finished]
    return [trainer.val_accuracy for trainer in trainers]


def _rule(parameters: ArrayLike) -> Agent:
    """Return the agent of fixed rule parameters. It draws as `SummaryEnv` does. Raises ValueError for another shape."""
    if np.shape(parameters) != FULL.shape:
        raise ValueError(f"baseline is {parameters!r}; it must be an agent (observation, rng), or {len(FULL)} numbers")

    def rule(observation: Observation, rng: np.random.Generator) -> Action:
        return apply_rule(observation, np.asarray(parameters), draw_uniform(rng, observation["label"] >= 0))

    return rule


def _require(env: Any, kind: Any) -> None:
    if not isinstance(env, kind):
        raise TypeError(f"the environment is {env}; it must be one of prune_env's, single or in a vector as the reward")
