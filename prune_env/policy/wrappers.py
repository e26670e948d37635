"""Other faces of the environment: few numbers observed, and actions that are a rule or the number of an agent.

The maths is in `features` and `rules`. One run and K runs at once share the classes that keep what an episode needs,
with leading batch axes: `()` for one run, `(K,)` for K runs. Infos tell which runs an observation is news of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from prune_env import memory
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule, draw_uniform
from prune_env.policy.tasks import TaskEnv, Tasks
from prune_env.policy.vector import PruneVectorEnv

Observation = dict[str, NDArray]
Action = dict[str, NDArray[np.float32]]
Agent = Callable[[Observation, np.random.Generator], Action]
Options = dict[str, Any] | None
Bools = NDArray[np.bool_]

RULE_STREAM = 5  # of random numbers, beside the trainer's four, 0 to 3, and the agents' in train/, 4


class _Features:
    """The features of runs, and the history that these need."""

    def __init__(self, *batch: int):
        self._now = self._next = initial_history(*batch)  # (…, P) before this observation, and before the next one

    def see(self, observation: Observation, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return features (…, D); a run without an info stands where it stood."""
        begun, moved = _news(info)
        self._now = np.where(moved[..., None], self._next, self._now)
        self._now = np.where(begun[..., None], initial_history(), self._now)
        self._next = update_history(self._now, observation)
        return extract_features(observation, self._now)


class _Rules:
    """What the rules of runs act on: the last observation, and draws that follow from each run's seed."""

    def __init__(self, *batch: int):
        self._batch = batch
        self._generators: dict[tuple[int, ...], np.random.Generator] = {}
        self._seen: Observation = {}
        self._draws = np.empty((0, 2))  # (…, N, 2)

    def see(self, observation: Observation, info: Mapping[str, Any]) -> None:
        """Keep what the next action needs. Draws are made here, so that an action that is refused costs none."""
        begun, moved = _news(info)
        self._seen, label = observation, observation["label"]
        if self._draws.shape[:-1] != label.shape:
            self._draws = np.zeros((*label.shape, 2))
        for run in np.ndindex(self._batch):
            if begun[run]:
                self._generators[run] = _generator(info["seed"][run])
            if moved[run]:
                self._draws[run] = draw_uniform(self._generators[run], label[run] >= 0)

    def act(self, parameters: ArrayLike) -> Action:
        """Return the action of parameters (…, R). Raises ResetNeeded before `see`, ValueError for wrong parameters."""
        _require_reset(self._seen)
        return apply_rule(self._seen, np.asarray(parameters), self._draws)


def _news(info: Mapping[str, Any]) -> tuple[Bools, Bools]:
    """Return which runs (…) have just begun, and which have moved: begun or taken a step."""
    moved = np.asarray(info.get("_step", True))  # a vector env's mask of the members that `info` is of
    return moved & (np.asarray(info["step"]) == 0), moved


class SummaryObservation(gym.Wrapper, RecordConstructorArgs):
    """Observes a run in the D numbers of `features.FEATURES`, (D,) float32 in [-1, 1].

    Args:
        env: a PruneEnv, in any wrappers that leave its observation alone.

    Raises:
        TypeError: `env` has another observation space.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _require_samples(self, env.observation_space, "label")
        self.observation_space = _box(FEATURES)
        self._features = _Features()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next run, without a history."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._features.see(observation, info), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the inner env."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._features.see(observation, info), float(reward), terminated, truncated, info


class AgentChoice(gym.Wrapper, RecordConstructorArgs):
    """Chooses which of several agents selects the samples of a step: `Discrete(A)`, in the order of `names`.

    An agent sees the observations of the steps that it is chosen for, and no others.

    Args:
        env: a PruneEnv, in any wrappers that leave its spaces alone.
        agents: name -> callable `(observation, rng) -> action`. One with `reset()` is reset with the env. Agents are
            copied, so that other environments do not share their state; functions are not copied.

    Raises:
        TypeError: `env` has other spaces, or an agent cannot be called, or not be copied.
        ValueError: there are no agents.
    """

    def __init__(self, env: gym.Env, agents: Mapping[str, Agent]):
        RecordConstructorArgs.__init__(self, agents=agents, _disable_deepcopy=True)
        gym.Wrapper.__init__(self, env)
        _require_samples(self, env.observation_space, "label")
        _require_samples(self, env.action_space, "weight")
        if not isinstance(agents, Mapping):
            raise TypeError(f"agents is a {type(agents).__name__}; it must be a mapping of names to agents")
        if not agents:
            raise ValueError(f"agents is {agents!r}; it must name one agent or more")
        for name, agent in agents.items():
            if not callable(agent):
                raise TypeError(f"agents[{name!r}] is {agent!r}, which cannot be called as (observation, rng)")
        self.names = tuple(agents)
        self.action_space = spaces.Discrete(len(agents))
        self._agents: tuple[Any, ...] = tuple(map(deepcopy, agents.values()))
        self._rng = np.random.default_rng()
        self._seen: Observation = {}

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next run, and reset every agent."""
        observation, info = self.env.reset(seed=seed, options=options)
        for agent in self._agents:
            memory.reset(agent)
        self._rng = _generator(info["seed"])
        self._seen = deepcopy(observation)  # the caller may write to what is returned
        return observation, info

    def step(
        self, action: int | np.integer | NDArray[np.integer]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train once on what agent number `action` selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            ValueError: there is no agent of that number; nothing has changed then.
        """
        _require_reset(self._seen)
        if not self.action_space.contains(action):
            raise ValueError(f"the action is {action!r}; it must be a whole number from 0 to {len(self.names) - 1}")
        chosen = self._agents[int(action)](self._seen, self._rng)
        observation, reward, terminated, truncated, info = self.env.step(chosen)
        self._seen = deepcopy(observation)
        return observation, float(reward), terminated, truncated, info


class SummaryEnv(TaskEnv):
    """A run observed in D features and acted on by R rule parameters, whatever its task.

    Equal seeds and parameters choose alike: a rule's draws follow from the seed of the run.

    Args:
        tasks: what each episode's task is drawn from, a name or a distribution; see `tasks.TaskEnv`, also
            for `reset(options={"task": ...})`.
        settings: keyword arguments of `PruneEnv`.
    """

    def __init__(self, tasks: str | Mapping[str, Any] | Tasks | None = None, **settings: Any):
        super().__init__(tasks, **settings)
        self.observation_space, self.action_space = _box(FEATURES), _box(RULE_PARAMETERS)
        self._features, self._rules = _Features(), _Rules()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next episode; see `TaskEnv.reset`."""
        observation, info = super().reset(seed=seed, options=options)
        self._rules.see(observation, info)
        return self._features.see(observation, info), info

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Train once on what the rule of R parameters selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            ValueError: there are not R finite parameters; nothing has changed then.
        """
        observation, reward, terminated, truncated, info = super().step(self._rules.act(action))
        self._rules.see(observation, info)
        return self._features.see(observation, info), reward, terminated, truncated, info


class _VectorSummary(VectorWrapper):
    """`SummaryEnv` of K runs: observations (K, D), actions (K, R). Each member draws as it would alone."""

    def __init__(self, env: PruneVectorEnv):
        super().__init__(env)
        self.single_observation_space, self.single_action_space = _box(FEATURES), _box(RULE_PARAMETERS)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._features, self._rules = _Features(env.num_envs), _Rules(env.num_envs)

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next runs; members that a `reset_mask` spares keep their history and draws."""
        observations, infos = self.env.reset(seed=seed, options=options)
        self._rules.see(observations, infos)
        return self._features.see(observations, infos), infos

    def step(self, actions: ArrayLike) -> tuple[NDArray[np.float32], NDArray, NDArray, NDArray, dict[str, Any]]:
        """Train once on what each member's rule selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            ValueError: the parameters are not (K, R), or not finite; nothing has changed then.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(self._rules.act(actions))
        self._rules.see(observations, infos)
        return self._features.see(observations, infos), rewards, terminated, truncated, infos


def vector_summary(num_envs: int = 1, **settings: Any) -> VectorEnv:
    """Return `SummaryEnv` of K runs.

    Args:
        num_envs: K.
        settings: keyword arguments of `PruneVectorEnv`.
    """
    return _VectorSummary(PruneVectorEnv(num_envs, **settings))


def _box(names: tuple[str, ...]) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (len(names),), np.float32)


def _require_samples(wrapper: gym.Wrapper, space: spaces.Space, entry: str) -> None:
    """Raise TypeError unless this is a space of `PruneEnv`, which has this (N,) entry."""
    if not isinstance(space, spaces.Dict) or entry not in space.spaces:
        raise TypeError(
            f"{type(wrapper).__name__} needs an env with PruneEnv's own spaces, where a Dict holds {entry!r}; got "
            f"{space}. What acts goes inside of what summarises: SummaryObservation(AgentChoice(env, agents))"
        )


def _generator(run_seed: Any) -> np.random.Generator:
    return np.random.default_rng([int(run_seed), RULE_STREAM])


def _require_reset(seen: object) -> None:
    if not seen:
        raise gym.error.ResetNeeded("no run was started: call reset()")
