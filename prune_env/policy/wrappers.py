"""Other faces of the environment: few numbers observed, and actions that are a rule, an agent's index or a mask.

The maths is in `features`, `rules` and `selection`. An action wrapper acts by the full observation, so the observation
is made small last: `SummaryObservation(RuleAction(env))`. A single and a vector wrapper share one class that keeps what
an episode needs, with leading batch axes: `()` for a single run, `(K,)` for K runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from prune_env.env import PruneEnv
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule, draw_uniform
from prune_env.policy.tasks import TaskDistribution, TaskEnv
from prune_env.policy.vector import PruneVectorEnv
from prune_env.selection import select

Observation = dict[str, NDArray]
Action = dict[str, NDArray[np.float32]]
Agent = Callable[[Observation, np.random.Generator], Action]
Options = dict[str, Any] | None
Bools = NDArray[np.bool_]

RULE_STREAM = 5  # of random numbers, beside the trainer's four, 0 to 3, and the agents' in train/, 4
YES = np.array(True)  # the mask of a single run


class _Features:
    """The features of runs, and the history that these need."""

    def __init__(self, *batch: int):
        self._now = self._next = initial_history(*batch)  # (…, P) before this observation, and before the next one

    def see(self, observation: Observation, fresh: Bools, moved: Bools) -> NDArray[np.float32]:
        """Return features (…, D); runs that are `fresh` (…) have just begun, others have `moved` (…) or stand still."""
        self._now = np.where(moved[..., None], self._next, self._now)
        self._now = np.where(fresh[..., None], initial_history(), self._now)
        self._next = update_history(self._now, observation)
        return extract_features(observation, self._now)


class _Rules:
    """What the rules of runs act on: the last observation, and draws that follow from each run's seed."""

    def __init__(self, *batch: int):
        self._batch = batch
        self._generators: dict[tuple[int, ...], np.random.Generator] = {}
        self._seen: Observation = {}
        self._draws = np.empty((0, 2))  # (…, N, 2)

    def see(self, observation: Observation, seeds: NDArray, fresh: Bools, moved: Bools) -> None:
        """Keep what the next action needs. Draws are made here, so that an action that is refused costs none."""
        self._seen, label = _copy(observation), observation["label"]
        if self._draws.shape[:-1] != label.shape:
            self._draws = np.zeros((*label.shape, 2))
        for run in np.ndindex(self._batch):
            if fresh[run]:
                self._generators[run] = _generator(seeds[run])
            if moved[run]:
                self._draws[run] = draw_uniform(self._generators[run], label[run] >= 0)

    def act(self, parameters: ArrayLike) -> Action:
        """Return the action of parameters (…, R). Raises ResetNeeded before `see`, ValueError for wrong parameters."""
        _require_reset(self._seen)
        action = apply_rule(self._seen, np.asarray(parameters), self._draws)
        return {**action, "score": np.zeros_like(action["weight"])}


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
        _samples(self, env.observation_space, "label")
        self.observation_space = _box(FEATURES)
        self._features = _Features()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next run, without a history."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._features.see(observation, fresh=YES, moved=YES), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the inner env."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._features.see(observation, ~YES, moved=YES), float(reward), terminated, truncated, info


class RuleAction(gym.Wrapper, RecordConstructorArgs):
    """Chooses by the R parameters of `rules.RULE_PARAMETERS`, (R,) in [-1, 1]; see `rules.apply_rule`.

    Its draws follow from the seed of the run: equal seeds and parameters choose alike.

    Args:
        env: a PruneEnv, in any wrappers that leave its spaces alone.

    Raises:
        TypeError: `env` has other spaces.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _samples(self, env.observation_space, "label")
        _samples(self, env.action_space, "weight")
        self.action_space = _box(RULE_PARAMETERS)
        self._rules = _Rules()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next run, with draws of its own."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._rules.see(observation, np.array(info["seed"]), fresh=YES, moved=YES)
        return observation, info

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train once on what the rule selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            ValueError: there are not R finite parameters; nothing has changed then.
        """
        observation, reward, terminated, truncated, info = self.env.step(self._rules.act(action))
        self._rules.see(observation, np.array(0), fresh=~YES, moved=YES)
        return observation, float(reward), terminated, truncated, info


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
        _samples(self, env.observation_space, "label")
        _samples(self, env.action_space, "weight")
        if not isinstance(agents, Mapping):
            raise TypeError(f"agents is a {type(agents).__name__}; it must be a mapping of names to agents")
        if not agents:
            raise ValueError(f"agents is {agents!r}; it must name one agent or more")
        for name, agent in agents.items():
            if not callable(agent):
                raise TypeError(f"agents[{name!r}] is {agent!r}, which cannot be called as (observation, rng)")
        self.names = tuple(agents)
        self.action_space = spaces.Discrete(len(agents))
        self._agents = tuple(_own(name, agent) for name, agent in agents.items())
        self._rng: np.random.Generator | None = None
        self._seen: Observation = {}

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next run, and reset every agent."""
        observation, info = self.env.reset(seed=seed, options=options)
        for agent in self._agents:
            if hasattr(agent, "reset"):
                agent.reset()  # pyright: ignore[reportFunctionMemberAccess]
        self._rng = _generator(info["seed"])
        self._seen = _copy(observation)
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
        chosen = self._agents[int(action)](self._seen, cast(np.random.Generator, self._rng))
        observation, reward, terminated, truncated, info = self.env.step(chosen)
        self._seen = _copy(observation)
        return observation, float(reward), terminated, truncated, info


class MaskAction(gym.Wrapper, RecordConstructorArgs):
    """Keeps the samples of a mask, `MultiBinary(N)`, each with weight 1.

    Args:
        env: a PruneEnv, in any wrappers that leave its action alone.

    Raises:
        TypeError: `env` has another action space.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.action_space = spaces.MultiBinary(_samples(self, env.action_space, "weight"))

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Any, dict[str, Any]]:
        """Start the next run, whose task may have another number of samples."""
        seen, info = self.env.reset(seed=seed, options=options)
        space = spaces.MultiBinary(_samples(self, self.env.action_space, "weight"))
        if space != self.action_space:  # an equal space stays, since it may have been seeded
            self.action_space = space
        return seen, info

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Train once on what the mask keeps.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            ValueError: the action is no mask of N entries; nothing has changed then.
        """
        mask = np.asarray(action)
        if not self.action_space.contains(mask):
            raise ValueError(
                f"the action has shape {mask.shape}; it must hold {self.action_space.shape} zeros and ones"
            )
        observation, reward, terminated, truncated, info = self.env.step(select(mask.astype(np.bool_)))
        return observation, float(reward), terminated, truncated, info


class _Vector(VectorWrapper):
    """Knows which members of a vector env start an episode: by the env's autoreset mode and by reset masks."""

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        _samples(self, env.single_observation_space, "label")
        if env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode is SAME_STEP, whose last observations would stay big; use NEXT_STEP")
        self._all = np.ones(env.num_envs, np.bool_)
        self._ended = ~self._all  # (K,) members whose next step only resets them

    def _reset(self, seed: Any, options: Options) -> tuple[Observation, dict[str, Any], Bools]:
        """Reset the inner env. The mask (K,) says which members were reset."""
        fresh = np.array((options or {}).get("reset_mask", self._all))  # before Gymnasium takes it out of the options
        observations, infos = self.env.reset(seed=seed, options=options)
        self._ended = self._ended & ~fresh
        return observations, infos, fresh

    def _step(self, actions: Any) -> tuple[tuple[Any, ...], Bools]:
        """Step the inner env. The mask (K,) says which members were reset by that."""
        stepped = self.env.step(actions)
        fresh = self._ended
        if self.env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED:
            fresh = ~self._all
        self._ended = np.logical_or(stepped[2], stepped[3])
        return stepped, fresh


class VectorSummaryObservation(_Vector):
    """`SummaryObservation` of K runs, (K, D) float32.

    Args:
        env: a vector env of PruneEnvs, in any wrappers that leave its observation alone; not of mode `SAME_STEP`.

    Raises:
        TypeError: `env` has another observation space.
        ValueError: `env` resets in the step that ends an episode.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        self.single_observation_space = _box(FEATURES)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._features = _Features(env.num_envs)

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next runs; members that a `reset_mask` spares keep their history."""
        observations, infos, fresh = self._reset(seed, options)
        return self._features.see(observations, fresh, moved=fresh), infos

    def step(self, actions: Any) -> tuple[NDArray[np.float32], NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step the inner env."""
        (observations, *rest), fresh = self._step(actions)
        return self._features.see(observations, fresh, moved=self._all), *rest  # pyright: ignore[reportReturnType]


class VectorRuleAction(_Vector):
    """`RuleAction` of K runs, (K, R): each member draws as it would alone.

    Args:
        env: a vector env of PruneEnvs, in any wrappers that leave its spaces alone; not of mode `SAME_STEP`.

    Raises:
        TypeError: `env` has other spaces.
        ValueError: `env` resets in the step that ends an episode.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        _samples(self, env.single_action_space, "weight")
        self.single_action_space = _box(RULE_PARAMETERS)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._rules = _Rules(env.num_envs)

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next runs, with draws of their own; members that a `reset_mask` spares keep their draws."""
        observations, infos, fresh = self._reset(seed, options)
        self._rules.see(observations, infos["seed"], fresh, moved=fresh)
        return observations, infos

    def step(self, actions: ArrayLike) -> tuple[Observation, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Train once on what each member's rule selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            ValueError: the parameters are not (K, R), or not finite; nothing has changed then.
        """
        parameters = np.array(actions, np.float64)
        if parameters.shape == self.action_space.shape:
            parameters[self._ended] = 0.0  # their step only resets them, whatever their action
        stepped, fresh = self._step(self._rules.act(parameters))
        self._rules.see(stepped[0], stepped[4].get("seed", np.zeros(self.num_envs)), fresh, moved=self._all)
        return stepped  # pyright: ignore[reportReturnType]


class SummaryEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A PruneEnv that is observed in D features and acted on by R rule parameters.

    An environment and not a wrapper, since its spaces stay as they are whatever the task. Other attributes, such as
    `trainer` or `recipe`, are those of `TaskEnv`.

    Args:
        tasks: what each episode's task is drawn from, a name or a distribution; see `tasks.TaskEnv`, also
            for `reset(options={"task": ...})`.
        settings: keyword arguments of `PruneEnv`.
    """

    metadata = PruneEnv.metadata

    def __init__(self, tasks: str | Mapping[str, Any] | TaskDistribution | None = None, **settings: Any):
        self._runs = TaskEnv(tasks, **settings)
        self._within = SummaryObservation(RuleAction(self._runs))
        self.observation_space, self.action_space = self._within.observation_space, self._within.action_space
        self.render_mode = self._runs.render_mode

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while this is being copied, and has nothing within yet
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self._runs, name)

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next episode; see `TaskEnv.reset`."""
        super().reset(seed=seed)
        return self._within.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Train once on what the rule selects; see `RuleAction.step`."""
        return self._within.step(action)

    def render(self) -> Any:
        """Draw the run; see `PruneEnv.render`."""
        return self._within.render()

    def close(self) -> None:
        """Let go of the run."""
        self._within.close()


def vector_summary(num_envs: int = 1, **settings: Any) -> VectorEnv:
    """Return `SummaryEnv` of K runs.

    Args:
        num_envs: K.
        settings: keyword arguments of `PruneVectorEnv`.
    """
    return VectorSummaryObservation(VectorRuleAction(PruneVectorEnv(num_envs, **settings)))


def _box(names: tuple[str, ...]) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (len(names),), np.float32)


def _samples(wrapper: object, space: spaces.Space, entry: str) -> int:
    """Return the number of samples N of a space of PruneEnv's, which has this (N,) entry."""
    if not isinstance(space, spaces.Dict) or entry not in space.spaces:
        raise TypeError(
            f"{type(wrapper).__name__} needs an env with PruneEnv's own spaces, where a Dict holds {entry!r}; got "
            f"{space}. What acts goes inside of what summarises: SummaryObservation(RuleAction(env))"
        )
    return cast(tuple[int, ...], space[entry].shape)[0]


def _own(name: str, agent: Agent) -> Agent:
    """Return a copy of one of `agents`."""
    try:
        return deepcopy(agent)
    except Exception as error:  # whatever its parts raise
        raise TypeError(f"agents[{name!r}] is {agent!r}, which cannot be copied: {error}") from error


def _generator(run_seed: Any) -> np.random.Generator:
    return np.random.default_rng([int(run_seed), RULE_STREAM])


def _require_reset(seen: object) -> None:
    if not seen:
        raise gym.error.ResetNeeded("no run was started: call reset()")


def _copy(observation: Observation) -> Observation:
    """Return a copy: the caller owns what is returned, and may write to it."""
    return {name: values.copy() for name, values in observation.items()}
