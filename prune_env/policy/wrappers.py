"""Other faces of the environment: small observations, and actions that are numbers, an agent's index or a mask.

Shells without maths: `encoding` and `selection` do the work. What acts by the observation has to see all of it, so
the observation is made small last: `SummaryObservation(RuleAction(env))`.
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
from prune_env.policy import encoding
from prune_env.policy.tasks import TaskDistribution, TaskEnv
from prune_env.policy.vector import PruneVectorEnv
from prune_env.selection import select

Observation = dict[str, NDArray]
Action = dict[str, NDArray[np.float32]]
Agent = Callable[[Observation, np.random.Generator], Action]
Options = dict[str, Any] | None

RULE_STREAM = 5  # of random numbers, beside the trainer's four, 0 to 3, and the agents' in train/, 4


class SummaryObservation(gym.Wrapper, RecordConstructorArgs):
    """Observes a run in the D numbers of `encoding.SUMMARY`, (D,) float32 in [-1, 1].

    Args:
        env: a PruneEnv, in whatever wrappers that leave its observation alone.

    Raises:
        TypeError: `env` has another observation space.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _samples(self, env.observation_space, "label")
        self.observation_space = _box(encoding.SUMMARY)
        self._past = encoding.begin()  # (P,), of what was acted on before the next observation

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next run, without a past."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._past = encoding.begin()
        return self._see(observation), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step as the env within does."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._see(observation), float(reward), terminated, truncated, info

    def _see(self, observation: Observation) -> NDArray[np.float32]:
        summary = encoding.summarize(observation, self._past)
        self._past = encoding.remember(self._past, observation)
        return summary


class RuleAction(gym.Wrapper, RecordConstructorArgs):
    """Chooses by the R numbers of `encoding.RULE`, (R,) in [-1, 1]; `encoding.decode_rule` says how.

    Its draws follow from the seed of the run: equal seeds and numbers choose alike.

    Args:
        env: a PruneEnv, in whatever wrappers that leave its spaces alone.

    Raises:
        TypeError: `env` has other spaces.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        _samples(self, env.observation_space, "label")
        _samples(self, env.action_space, "weight")
        self.action_space = _box(encoding.RULE)
        self._rng: np.random.Generator | None = None
        self._seen: Observation = {}
        self._draws = np.empty((0, 2))  # (N, 2)

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next run, and draws of its own."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._rng = _generator(info["seed"])
        self._see(observation)
        return observation, info

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train once on what the rule selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            ValueError: the numbers are not R, or not finite; nothing has changed then.
        """
        _require_reset(self._rng)
        observation, reward, terminated, truncated, info = self.env.step(_decode(self._seen, action, self._draws))
        self._see(observation)
        return observation, float(reward), terminated, truncated, info

    def _see(self, observation: Observation) -> None:
        """Keep what the next step acts on; its draws are made now, so that a refused action costs none."""
        self._seen = _copy(observation)
        self._draws = encoding.draw(cast(np.random.Generator, self._rng), observation["label"] >= 0)


class AgentChoice(gym.Wrapper, RecordConstructorArgs):
    """Chooses which of several agents selects the samples of a step: `Discrete(A)`, in the order of `names`.

    An agent sees the observations of the steps that it is chosen for, and no others.

    Args:
        env: a PruneEnv, in whatever wrappers that leave its spaces alone.
        agents: name -> callable `(observation, rng) -> action`. One with `reset()` is reset with the env. They are
            copied, so that what they remember is of this environment alone; a function is not, nor what it encloses.

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
        """Start the next run, and every agent with it."""
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
        _require_reset(self._rng)
        if not self.action_space.contains(action):
            raise ValueError(f"the action is {action!r}; it must be a whole number from 0 to {len(self.names) - 1}")
        chosen = self._agents[int(action)](self._seen, cast(np.random.Generator, self._rng))
        observation, reward, terminated, truncated, info = self.env.step(chosen)
        self._seen = _copy(observation)
        return observation, float(reward), terminated, truncated, info


class MaskAction(gym.Wrapper, RecordConstructorArgs):
    """Keeps the samples of a mask, `MultiBinary(N)`, each with weight 1.

    Args:
        env: a PruneEnv, in whatever wrappers that leave its action alone.

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
        if space != self.action_space:  # else it goes on with the draws of its seed
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


class VectorSummaryObservation(VectorWrapper):
    """`SummaryObservation` of K runs, (K, D) float32.

    Args:
        env: a vector env of PruneEnvs, in whatever wrappers that leave its observation alone; of other autoreset
            modes than `SAME_STEP`.

    Raises:
        TypeError: `env` has another observation space.
        ValueError: `env` resets in the step that ends an episode.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        _samples(self, env.single_observation_space, "label")
        if env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
            raise ValueError("autoreset_mode is SAME_STEP, whose last observations would stay big; use NEXT_STEP")
        self.single_observation_space = _box(encoding.SUMMARY)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._past = encoding.begin(env.num_envs)  # (K, P), of what was acted on before the present observation
        self._next = self._past  # (K, P), likewise before the next one

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next runs, without a past; where a `reset_mask` spares a member, it keeps its own."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._see(observations, infos), infos

    def step(self, actions: Any) -> tuple[NDArray[np.float32], NDArray, NDArray, NDArray, dict[str, Any]]:
        """Step as the env within does."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._past = self._next
        return self._see(observations, infos), rewards, terminated, truncated, infos

    def _see(self, observations: Observation, infos: dict[str, Any]) -> NDArray[np.float32]:
        fresh = _were_reset(infos, self.num_envs)
        self._past = np.where(fresh[:, None], encoding.begin(), self._past)
        self._next = encoding.remember(self._past, observations)
        return encoding.summarize(observations, self._past)


class VectorRuleAction(VectorWrapper):
    """`RuleAction` of K runs, (K, R): each member draws as it would alone.

    Args:
        env: a vector env of PruneEnvs, in whatever wrappers that leave its spaces alone.

    Raises:
        TypeError: `env` has other spaces.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        n = _samples(self, env.single_observation_space, "label")
        _samples(self, env.single_action_space, "weight")
        self.single_action_space = _box(encoding.RULE)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._rngs: dict[int, np.random.Generator] = {}  # of member k
        self._seen: Observation = {}
        self._draws = np.zeros((env.num_envs, n, 2))
        self._ended = np.zeros(env.num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: Options = None) -> tuple[Observation, dict[str, Any]]:
        """Start the next runs, and draws of their own; where a `reset_mask` spares a member, it keeps its draws."""
        observations, infos = self.env.reset(seed=seed, options=options)
        fresh = _were_reset(infos, self.num_envs)
        self._ended &= ~fresh
        self._see(observations, infos, fresh)
        return observations, infos

    def step(self, actions: ArrayLike) -> tuple[Observation, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Train once on what each member's rule selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            ValueError: the numbers are not (K, R), or not finite; nothing has changed then.
        """
        _require_reset(self._rngs)
        numbers = np.array(actions, np.float64)
        if numbers.shape == self.action_space.shape:
            numbers[self._ended] = 0.0  # whose step only resets them, whatever their action
        chosen = _decode(self._seen, numbers, self._draws)
        observations, rewards, terminated, truncated, infos = self.env.step(chosen)
        self._ended = np.logical_or(terminated, truncated) & ~_were_reset(infos, self.num_envs)
        self._see(observations, infos, np.ones(self.num_envs, np.bool_))
        return observations, rewards, terminated, truncated, infos

    def _see(self, observations: Observation, infos: dict[str, Any], moved: NDArray[np.bool_]) -> None:
        """Keep what the next step acts on, and make the draws of the members that moved."""
        for k in np.flatnonzero(_were_reset(infos, self.num_envs)).tolist():
            self._rngs[k] = _generator(infos["seed"][k])
        self._seen = _copy(observations)
        for k in np.flatnonzero(moved).tolist():
            self._draws[k] = encoding.draw(self._rngs[k], observations["label"][k] >= 0)


class SummaryEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A PruneEnv that is seen in the D numbers of a summary, and acted on by the R of a rule.

    An environment in its own right, whose spaces stay as they are whatever the task. What else is asked of it, as
    `trainer` or `recipe`, is what `TaskEnv` has.

    Args:
        tasks: what each episode's task is drawn from, a name or a distribution; see `tasks.TaskEnv`, also
            for `reset(options={"task": ...})`.
        settings: those of `PruneEnv`.
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
        """As that of what is within."""
        super().reset(seed=seed)
        return self._within.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """As `RuleAction.step`."""
        return self._within.step(action)

    def render(self) -> Any:
        """As `PruneEnv.render`."""
        return self._within.render()

    def close(self) -> None:
        """Let go of the run."""
        self._within.close()


def vector_summary(num_envs: int = 1, **settings: Any) -> VectorEnv:
    """`SummaryEnv` of K runs.

    Args:
        num_envs: K.
        settings: those of `PruneVectorEnv`.
    """
    return VectorSummaryObservation(VectorRuleAction(PruneVectorEnv(num_envs, **settings)))


def _box(names: tuple[str, ...]) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (len(names),), np.float32)


def _samples(wrapper: object, space: spaces.Space, entry: str) -> int:
    """The number of samples N, of a space of PruneEnv's that has this (N,) entry."""
    if not isinstance(space, spaces.Dict) or entry not in space.spaces:
        raise TypeError(
            f"{type(wrapper).__name__} needs an env with PruneEnv's own spaces, where a Dict holds {entry!r}; got "
            f"{space}. What acts goes inside of what summarises: SummaryObservation(RuleAction(env))"
        )
    return cast(tuple[int, ...], space[entry].shape)[0]


def _own(name: str, agent: Agent) -> Agent:
    """A copy of one of `agents`."""
    try:
        return deepcopy(agent)
    except Exception as error:  # whatever its parts raise
        raise TypeError(f"agents[{name!r}] is {agent!r}, which cannot be copied: {error}") from error


def _generator(run_seed: int) -> np.random.Generator:
    return np.random.default_rng([int(run_seed), RULE_STREAM])


def _require_reset(started: object) -> None:
    if not started:
        raise gym.error.ResetNeeded("no run was started: call reset()")


def _were_reset(infos: dict[str, Any], members: int) -> NDArray[np.bool_]:
    """(K,): whose run starts with what was just returned."""
    told = np.asarray(infos.get("_step", np.zeros(members)), np.bool_)
    return told & (np.asarray(infos.get("step", np.ones(members))) == 0)


def _copy(observation: Observation) -> Observation:
    """A copy: the caller owns what is returned, and may write to it."""
    return {name: values.copy() for name, values in observation.items()}


def _decode(seen: Observation, numbers: ArrayLike, draws: NDArray[np.float64]) -> Action:
    """The whole action of a rule, which scores nothing."""
    action = encoding.decode_rule(seen, np.asarray(numbers), draws)
    return {**action, "score": np.zeros_like(action["weight"])}
