"""Frozen policies: from the features of a run to the parameters of a rule, or to the number of an agent.

`prune-env learn` makes an npz file, which `prune_env.policy.Learned` plays too. Policies that Stable-Baselines3 trained
directly on `prune_env/DigitsSummary-v0`, or on `SummaryObservation(AgentChoice(env, agents))`, are played from its zip.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from prune_env.memory import load_state, reset, state_of
from prune_env.policy import learned
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import Policy
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.sampling import Action, Agent, Observation, check

# the module of a policy in SB3's zip -> package and class of an algorithm that predicts with it
SB3 = {
    "stable_baselines3.common.policies": ("stable_baselines3", "PPO"),
    "stable_baselines3.dqn.policies": ("stable_baselines3", "DQN"),
    "stable_baselines3.sac.policies": ("stable_baselines3", "SAC"),
    "stable_baselines3.td3.policies": ("stable_baselines3", "TD3"),
    "sb3_contrib.common.recurrent.policies": ("sb3_contrib", "RecurrentPPO"),
    "sb3_contrib.ars.policies": ("sb3_contrib", "ARS"),
}


@dataclass(kw_only=True)
class Learned(learned.Learned):
    """A trained policy: in every step it chooses a rule, or one of several agents, by the features of the run.

    It works for any number of samples and classes and any budget. Agents act as in `AgentChoice`: each sees the
    observations of the steps that it is chosen for, and no others.

    Args:
        path: a policy of `prune-env learn`, or a zip of Stable-Baselines3; the shipped policy by default. Beside x.zip,
            x.pkl holds the statistics of the `VecNormalize` that the policy was trained behind, if it was.
        trust: a zip of Stable-Baselines3 is loaded by unpickling, which runs whatever code it holds; True says
            that you know where it is from.
        agents: those that a policy with `Discrete(A)` actions chooses among, A in the order of its training.

    Raises:
        ValueError: a zip without `trust`, or trained behind a wrapper that changes what it sees or how it acts; a file
            that cannot be read; more agents or fewer than the policy chooses among; and what `Network.load` raises.
    """

    trust: bool = False
    agents: Sequence[Agent] = ()

    def __post_init__(self) -> None:
        check("trust", self.trust, bool)
        choices = 0  # agents that the policy chooses among, 0 if it chooses rules
        try:
            if Path(self.path).suffix == ".zip":
                self._policy, choices = self._load_zip()
                self.reset()
            else:
                super().__post_init__()
        except OSError as error:
            raise ValueError(f"policy {self.path} cannot be read: {error}") from error
        if len(self.agents) != choices:
            needs = f"it chooses among {choices}: name them, in the order of its training, by agents=FIRST/SECOND/..."
            raise ValueError(
                f"policy {self.path} is given {len(self.agents)} agents, but "
                + (needs if choices else "it chooses rules: leave out agents=...")
            )

    def _load_zip(self) -> tuple[SB3Policy, int]:
        """Return the policy of a zip, and how many agents it chooses among."""
        if not self.trust:
            raise ValueError(
                f"policy {self.path} is a zip of Stable-Baselines3, and loading one runs code that it holds: say "
                f"learned:{self.path},trust=True if you know where it is from, or use the npz file beside it"
            )
        model, normalize = _sb3(self.path)
        return SB3Policy(model, normalize), int(getattr(model.action_space, "n", 0))  # of Discrete; Box has none

    def reset(self) -> None:
        super().reset()
        if isinstance(self._policy, SB3Policy):
            self._policy.memory = None
        for agent in self.agents:
            reset(agent)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what it remembers of the episode, None if one of its agents cannot tell its own state."""
        memory = self._policy.memory if isinstance(self._policy, SB3Policy) else None
        of_agents = [state_of(agent) for agent in self.agents]
        return None if None in of_agents else {"history": self.history, "memory": memory, "agents": of_agents}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` of the same policy returned."""
        super().load_state_dict(state)
        if isinstance(self._policy, SB3Policy):
            self._policy.memory = state["memory"]
        for agent, of_agent in zip(self.agents, state["agents"], strict=True):
            load_state(agent, of_agent)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        if self.agents:
            return self.agents[int(self.choose(observation))](observation, rng)
        return super().__call__(observation, rng)


@dataclass
class SB3Policy:
    """A policy of Stable-Baselines3 in one episode."""

    model: Any
    normalize: Policy | None  # of a VecNormalize
    memory: tuple[NDArray, ...] | None = None  # None at the start of the episode; empty for a policy without memory

    def __call__(self, features: NDArray) -> NDArray:
        first = np.array([self.memory is None])
        seen = features if self.normalize is None else self.normalize(features)
        chosen, state = self.model.predict(seen, state=self.memory, episode_start=first, deterministic=True)
        self.memory = state or ()
        return chosen


def _sb3(path: str) -> tuple[Any, Policy | None]:
    """Load a zip of Stable-Baselines3: a model, and what normalizes its features, if it was trained on such.

    Raises:
        ValueError: it is damaged, or would not act as it did in training.
    """
    try:
        with ZipFile(path) as file:
            module = str(json.loads(file.read("data"))["policy_class"]["__module__"])
    except (BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"policy {path} is damaged, or no zip of Stable-Baselines3: {error}") from error
    if module not in SB3:
        raise ValueError(f"policy {path} is of {module}; known are {', '.join(SB3)}")
    package, name = SB3[module]
    try:
        algorithm = getattr(importlib.import_module(package), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"policy {path} needs {package}: pip install {package.replace('_', '-')}") from error
    try:
        model = algorithm.load(path, device="cpu")
    except Exception as error:  # unpickling a damaged file can raise anything
        raise ValueError(f"policy {path} cannot be loaded: {type(error).__name__}: {error}") from error
    _check_spaces(path, model)
    return model, _normalizer(path) if _behind_vec_normalize(model) else None


def _behind_vec_normalize(model: Any) -> bool:
    """Say whether the last observations (K, D) that a zip holds were normalized."""
    last = model._last_obs
    # features are in [-1, 1]; of normalized ones some are not. Where only rewards are normalized, all are
    return model._last_original_obs is not None and bool(np.abs(last).max() > 1.0)


def _check_spaces(path: str, model: Any) -> None:
    """Raise ValueError for a policy of other spaces than summaries and rules, or agents."""
    from gymnasium.spaces import Box, Discrete

    seen, acts = model.observation_space, model.action_space
    rules = isinstance(acts, Box) and acts.shape == (len(RULE_PARAMETERS),)
    choices = isinstance(acts, Discrete) and acts.start == 0
    if not (isinstance(seen, Box) and seen.shape == (len(FEATURES),) and (rules or choices)):
        raise ValueError(
            f"policy {path} was not trained on summaries and rules, or agents: use prune_env/DigitsSummary-v0, or "
            "SummaryObservation(AgentChoice(env, agents))"
        )
    for space, what in ((seen, "observed"), (acts, "acted")):
        if isinstance(space, Box) and not (np.all(space.low == -1.0) and np.all(space.high == 1.0)):
            raise ValueError(
                f"policy {path} {what} within [{space.low.min():g}, {space.high.max():g}] in training, and here it is "
                "[-1, 1]: a wrapper such as RescaleAction or NormalizeObservation changed the numbers. Train it without"
            )
    raw = model._last_obs if model._last_original_obs is None else model._last_original_obs  # before VecNormalize
    if raw is not None and np.abs(raw).max() > 1.0:
        raise ValueError(
            f"policy {path} observed {np.abs(raw).max():.3g} in training, and here it is in [-1, 1]: a wrapper such "
            "as TransformObservation changed the numbers. Train it without"
        )


def _normalizer(path: str) -> Policy:
    """Return what the `VecNormalize` saved beside a policy does to features. Raises ValueError if there is none."""
    from stable_baselines3.common.save_util import load_from_pkl
    from stable_baselines3.common.vec_env import VecNormalize

    beside = Path(path).with_suffix(".pkl")
    remedy = f"save them as {beside} by `env.save({str(beside)!r})`, or train it without VecNormalize"
    if not beside.exists():
        raise ValueError(
            f"policy {path} was trained behind VecNormalize and is another policy without its statistics: {remedy}"
        )
    try:
        statistics = load_from_pkl(str(beside))
    except Exception as error:  # unpickling a damaged file can raise anything
        raise ValueError(f"statistics {beside} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(statistics, VecNormalize) or statistics.observation_space.shape != (len(FEATURES),):
        raise ValueError(f"{beside} has no statistics of VecNormalize over {len(FEATURES)} features: {remedy}")
    return statistics.normalize_obs  # pyright: ignore[reportReturnType]
