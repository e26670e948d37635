"""Any Gymnasium vector environment as one that Stable-Baselines3 trains on.

    model = PPO("MlpPolicy", VecMonitor(SB3VecEnv(gymnasium.make_vec("CartPole-v1", 8))))

Stable-Baselines3 resets in the same step: after the last step of an episode it wants the first observation of the
next one, and the last one in `infos[i]["terminal_observation"]`. Where the vector environment resets a step later, or
leaves it to the caller, `reset(options={"reset_mask": done})` does it at once: no step is lost, and the step that only
resets (its action ignored, its reward zero) enters no rollout. Gymnasium's own batches, as CartPole's, do not know such
masks and reset everybody. The first time that is seen, all episodes end there, cut off; from then on each member's
episodes begin with the step that only resets it, from its last observation. `vectorization_mode="sync"` knows masks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from operator import itemgetter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

MASKS = (
    "its episodes begin with a step that only resets; gymnasium.make_vec(..., vectorization_mode='sync') knows masks"
)


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment of K members behind Stable-Baselines3's interface.

    Observations are an array (K, ...) or a flat dict of them, rewards float32 (K,), dones bool (K,); all are copies.
    Attributes and methods are the members' own, or those of a batched environment where its members have none.
    Raises TypeError for observations that are tuples or nested dicts, ValueError where the autoreset mode is not known
    or a reset of some members is known to go wrong.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(f'{env}: metadata["autoreset_mode"] is {mode!r}; make it a gymnasium.vector.AutoresetMode')
        space = env.observation_space
        for part in space.values() if isinstance(space, spaces.Dict) else [space]:
            if not isinstance(part, (spaces.Box, spaces.MultiDiscrete)):
                raise TypeError(f"{env}: observations must be arrays or a flat dict of arrays, not {part}")
        _refuse_what_masks_break(env, mode)
        self.env = env
        self._same_step = mode is AutoresetMode.SAME_STEP
        self._knows_masks = True  # as far as is known
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every member, with the seed and the options set before; both are used once.

        Members whose options differ from the first one's are reset twice, the second time with their own.
        Raises ValueError if they differ and the environment, told to reset some members, resets others too.
        """
        # seed() gave member i the first seed + i, and that is what a vector environment makes of one number
        observations, infos = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = _split(infos, self.num_envs)
        waiting = [i for i, options in enumerate(self._options) if options != self._options[0]]
        while waiting:
            mask = np.array([options == self._options[waiting[0]] for options in self._options])  # (K,)
            seeds: Any = None if self._seeds[0] is None else list(self._seeds)
            before = _copied(observations)
            observations, infos = self.env.reset(seed=seeds, options={**self._options[waiting[0]], "reset_mask": mask})
            if not _equal(before, observations, ~mask):
                raise ValueError(f"options must be the same for all {self.num_envs} members, not {self._options}")
            split = _split(infos, self.num_envs)
            for i in np.flatnonzero(mask):
                self.reset_infos[i] = split[i]
            waiting = [i for i in waiting if not mask[i]]
        self._reset_seeds()
        self._reset_options()
        return _copied(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (K, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every member and start the next episode of those that are done."""
        stepped, reward, terminated, truncated, vector_infos = self.env.step(self._actions)
        # all is copied before a reset, which may clear what the environment returned
        observations, rewards = _copied(stepped), np.array(reward, np.float32)
        dones = np.logical_or(terminated, truncated)  # (K,) bool
        infos, out_of_time = _split(vector_infos, self.num_envs), np.greater(truncated, terminated)
        last = observations
        if self._same_step:
            for i in np.flatnonzero(dones):
                self.reset_infos[i], infos[i] = infos[i], infos[i].pop("final_info")
                infos[i]["terminal_observation"] = self.reset_infos[i].pop("final_obs")
        elif dones.any():
            if self._knows_masks:
                reset, vector_infos = self.env.reset(options={"reset_mask": dones})
                observations = _copied(reset)
                if not _equal(observations, last, ~dones):
                    warnings.warn(f'{self.env} ignores options["reset_mask"]: {MASKS}', stacklevel=2)
                    self._knows_masks = False
                    out_of_time, dones = out_of_time | ~dones, np.ones_like(dones)
                reset_infos = _split(vector_infos, self.num_envs)
            else:
                reset_infos = [{} for _ in infos]
            for i in np.flatnonzero(dones):
                self.reset_infos[i] = reset_infos[i]
                infos[i]["terminal_observation"] = _each(itemgetter(i), last)
        for info, only_time in zip(infos, out_of_time, strict=True):
            info["TimeLimit.truncated"] = bool(only_time)
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """K frames, uint8 (height, width, 3)."""
        return self._per_member(self.env.render())

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the members asked for. Raises AttributeError if one of all members lacks it."""
        env: Any = self.env.unwrapped
        if self._have(attr_name):
            return [env.envs[i].get_wrapper_attr(attr_name) for i in self._get_indices(indices)]
        if not hasattr(env, "call"):
            values = [getattr(env, attr_name)] * self.num_envs
        elif all(env.call("has_wrapper_attr", attr_name)):  # asked first: a worker process dies of what is missing
            values = env.call("get_wrapper_attr", attr_name)  # env.get_attr would call a method instead
        else:
            raise AttributeError(f"{env} has members without {attr_name!r}")
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of members.

        Raises NotImplementedError if only some are named of those that live in other processes or do not exist.
        """
        env: Any = self.env.unwrapped
        if isinstance(env, SyncVectorEnv) or self._have(attr_name):
            for i in self._get_indices(indices):
                env.envs[i].set_wrapper_attr(attr_name, value)
            return
        self._refuse_some(indices)
        if hasattr(env, "call"):
            env.call("set_wrapper_attr", attr_name, value)
        else:
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> list[Any]:
        """Call a method of members; a batched environment's is called once and returns K results, or None.

        Raises NotImplementedError if only some are named of members that live in other processes or do not exist.
        """
        env: Any = self.env.unwrapped
        if self._have(method_name):
            methods = self.get_attr(method_name, indices)
            return [method(*method_args, **method_kwargs) for method in methods]
        self._refuse_some(indices)
        if hasattr(env, "call"):
            return list(env.call(method_name, *method_args, **method_kwargs))
        return self._per_member(getattr(env, method_name)(*method_args, **method_kwargs))

    def _have(self, name: str) -> bool:
        """Whether there are members in this process, and all have this attribute."""
        members = getattr(self.env.unwrapped, "envs", ())
        return len(members) == self.num_envs and all(member.has_wrapper_attr(name) for member in members)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the members are wrapped so; False where they live in other processes or do not exist."""
        members = getattr(self.env.unwrapped, "envs", None)
        return [members is not None and is_wrapped(members[i], wrapper_class) for i in self._get_indices(indices)]

    def _per_member(self, results: Any) -> list[Any]:
        return [None] * self.num_envs if results is None else list(results)

    def _refuse_some(self, indices: VecEnvIndices) -> None:
        if list(self._get_indices(indices)) != list(range(self.num_envs)):
            raise NotImplementedError(f"{self.env} reaches all its members at once, not {indices}")


def _refuse_what_masks_break(env: VectorEnv[Any, Any, Any], mode: AutoresetMode) -> None:
    """Raise ValueError for the parts of Gymnasium 1.4 that lose count when some members are reset."""
    inner = env.unwrapped
    if mode is AutoresetMode.NEXT_STEP and isinstance(inner, AsyncVectorEnv) and not inner.shared_memory:
        raise ValueError(f"{env} resets twice where it does not share memory: set shared_memory=True")
    while isinstance(env, VectorWrapper):
        if isinstance(env, RecordEpisodeStatistics):
            raise ValueError(f"{env} loses returns when some members are reset: wrap SB3VecEnv in VecMonitor instead")
        env = env.env


def _split(infos: dict[Any, Any], members: int) -> list[dict[Any, Any]]:
    """One dict a member, copied from a dict of arrays (K, ...) in which the mask `_key` says who has `key`."""
    split: list[dict[Any, Any]] = [{} for _ in range(members)]
    masks = {f"_{key}" for key in infos}
    for key, values in infos.items():
        if key not in masks:
            rows = _split(values, members) if isinstance(values, dict) else deepcopy(values)
            for i in np.flatnonzero(infos.get(f"_{key}", np.ones(members, bool))):
                split[i][key] = rows[i]
    return split


def _each(function: Any, observations: Any) -> Any:
    """The function of an array, or of every array of a dict."""
    if isinstance(observations, dict):
        return {key: function(rows) for key, rows in observations.items()}
    return function(observations)


def _copied(observations: Any) -> Any:
    """Observations that no later step writes to: some vector environments return one buffer again and again."""
    return _each(np.array, observations)


def _equal(left: Any, right: Any, members: np.ndarray) -> bool:
    """Whether two batches of observations agree in these members, given as bool (K,)."""
    if isinstance(left, dict):
        return all(_equal(left[key], right[key], members) for key in left)
    return np.array_equal(left[members], right[members], equal_nan=True)
