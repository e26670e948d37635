"""A Gymnasium vector environment as one that Stable-Baselines3 trains on: `pip install 'prune-env[sb3]'`.

    envs = gymnasium.make_vec("prune_env/DigitsSummary-v0", num_envs=16, tasks="digits")
    model = PPO("MlpPolicy", VecMonitor(SB3VecEnv(envs)))

Stable-Baselines3 resets in the same step: after the last step of an episode it wants the first observation of the next
one, and the last one in `infos[i]["terminal_observation"]`. The adapter calls `reset(options={"reset_mask": done})` at
once, so no step is lost, and a step that only resets enters no rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)


class SB3VecEnv(VecEnv):
    """A vector environment of K members behind Stable-Baselines3's interface.

    Observations are an array (K, ...) or a flat dict of them, rewards float32 (K,), dones bool (K,).
    Attributes and methods are the members' own, where the members live in this process.

    Args:
        env: resets some of its members when told by `options["reset_mask"]`, as this project's environments and
            Gymnasium's `SyncVectorEnv` do.

    Raises:
        ValueError: the environment resets members in the same step, or does not say when; a `RecordEpisodeStatistics`
            is around it; or, in `step`, it ignores `reset_mask`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in MODES:
            modes = " or ".join(map(str, MODES))
            raise ValueError(f'{env}: metadata["autoreset_mode"] is {mode!r}; it must be {modes}')
        layer: Any = env
        while isinstance(layer, VectorWrapper):
            if isinstance(layer, RecordEpisodeStatistics):
                raise ValueError(f"{env} loses returns when some members are reset: wrap SB3VecEnv in VecMonitor")
            layer = layer.env
        self.env: Any = DictInfoToList(env)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every member, with the seed and the options set before; both are used once.

        Raises ValueError if members have different options.
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError(f"options must be the same for all {self.num_envs} members, not {self._options}")
        # seed() gave member i the first seed + i, as a vector environment does with one number
        observations, self.reset_infos = self.env.reset(seed=self._seeds[0], options=options or None)
        self._reset_seeds()
        self._reset_options()
        return _each(np.array, observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (K, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step every member, and start the next episode of members that are done."""
        stepped, reward, terminated, truncated, infos = self.env.step(self._actions)
        # copied before a reset, since some vector environments return one buffer again and again
        last, rewards = _each(np.array, stepped), np.array(reward, np.float32)
        dones, out_of_time = np.logical_or(terminated, truncated), np.greater(truncated, terminated)
        observations = last
        if dones.any():
            reset, reset_infos = self.env.reset(options={"reset_mask": dones})
            observations = _each(np.array, reset)
            if not _equal(observations, last, ~dones):
                raise ValueError(f'{self.env} ignores options["reset_mask"]: use vectorization_mode="sync"')
            for i in np.flatnonzero(dones):
                self.reset_infos[i] = reset_infos[i]
                infos[i]["terminal_observation"] = _each(itemgetter(i), last)
        for info, cut in zip(infos, out_of_time, strict=True):
            info["TimeLimit.truncated"] = bool(cut)
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return K frames, uint8 (height, width, 3)."""
        frames = self.env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of members; if they are not in this process, the vector environment's."""
        if self._members is None:
            return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]
        return [member.get_wrapper_attr(attr_name) for member in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of members."""
        for member in self._chosen(indices):
            member.set_wrapper_attr(attr_name, value)

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> list[Any]:
        """Call a method of members; return what each returns."""
        methods = [member.get_wrapper_attr(method_name) for member in self._chosen(indices)]
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say whether members are wrapped so; False where they are not in this process."""
        if self._members is None:
            return [False for _ in self._get_indices(indices)]
        return [is_wrapped(member, wrapper_class) for member in self._chosen(indices)]

    @property
    def _members(self) -> Sequence[gym.Env] | None:
        """The members as they are in this episode, None where they are not in this process."""
        return getattr(self.env.unwrapped, "envs", None)

    def _chosen(self, indices: VecEnvIndices) -> list[gym.Env]:
        members = self._members
        if members is None:
            raise NotImplementedError(f"the members of {self.env} are not in this process")
        return [members[i] for i in self._get_indices(indices)]


def _each(function: Any, observations: Any) -> Any:
    """Return the function of an array, or of every array of a dict."""
    if isinstance(observations, dict):
        return {key: function(rows) for key, rows in observations.items()}
    return function(observations)


def _equal(left: Any, right: Any, members: np.ndarray) -> bool:
    """Say whether two batches of observations agree in these members, given as bool (K,)."""
    if isinstance(left, dict):
        return all(_equal(left[key], right[key], members) for key in left)
    return np.array_equal(left[members], right[members], equal_nan=True)
